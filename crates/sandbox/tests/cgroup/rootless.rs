//! A runtime that is not root: with nothing, and with a group that was delegated to it.

use std::os::fd::AsFd;
use std::os::unix::fs::chown;
use std::path::Path;

use moat_linux::credentials;
use moat_linux::process::{self, Clone3, Forked};
use moat_sandbox::cgroup::{self, Layout, Unified};

use crate::{make, resources, run_in};

const NOBODY: u32 = 65534;

pub(crate) fn rootless(layout: &Layout, path: &str) {
    let Some(unified) = layout.unified() else { return println!("     v1 is not delegated") };
    // The shape that systemd delegates: a group of the user's, and the user's processes in one below it.
    let bare = Layout::Unified(Unified { controllers: Vec::new(), ..unified.clone() });
    let delegated = make(&bare, path, "{}");
    let session = make(&bare, &format!("{path}/session"), "{}");
    let without = run_in(&session.state, || told(try_without(layout))).wait();
    assert_eq!(without.exit_status(), Some(0));
    let group = delegated.state.unified.as_ref().expect("the group").directory.clone();
    for name in ["", "cgroup.procs", "cgroup.subtree_control", "session", "session/cgroup.procs"] {
        chown(group.join(name), Some(NOBODY), Some(NOBODY)).expect("delegation");
    }
    let with = run_in(&session.state, || told(try_delegated(layout, &group))).wait();
    assert_eq!(with.exit_status(), Some(0));
}

fn told(outcome: Result<(), String>) -> i32 {
    match outcome {
        Ok(()) => 0,
        Err(sentence) => {
            println!("     {sentence}");
            1
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Becomes nobody, and sees the layout from there.
fn detected(given: &Layout) -> Result<Layout, String> {
    credentials::set_groups(&[]).map_err(text)?;
    credentials::set_group(NOBODY).map_err(text)?;
    credentials::set_user(NOBODY).map_err(text)?;
    let mut layout = cgroup::detect().map_err(text)?;
    if let (Layout::Unified(_), Some(unified)) = (given, layout.unified().cloned()) {
        layout = Layout::Unified(unified);
    }
    layout.probe("", "box").map_err(text)?;
    Ok(layout)
}

fn try_without(given: &Layout) -> Result<(), String> {
    let layout = detected(given)?;
    let rules = resources(r#"{"devices": [{"allow": false}]}"#);
    let (state, operations) = cgroup::plan(&layout, "", "box", Some(&rules), true).map_err(text)?;
    if !state.is_empty() || !operations.is_empty() {
        return Err(format!("planned without permission: {operations:?}"));
    }
    let limits = resources(r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}"#);
    let refused =
        cgroup::plan(&layout, "", "box", Some(&limits), true).err().ok_or("a limit that can not hold")?;
    let hint = refused.hint_text().unwrap_or_default();
    if hint.ends_with("this user may make no group") {
        Ok(())
    } else {
        Err(format!("{refused}, hint: {hint}"))
    }
}

fn try_delegated(given: &Layout, group: &Path) -> Result<(), String> {
    let layout = detected(given)?;
    let (state, operations) = cgroup::plan(&layout, "", "box", None, true).map_err(text)?;
    for operation in &operations {
        operation.apply().map_err(|error| format!("{operation}: {error}"))?;
    }
    // On v2 alone beside the session, which has processes and so could give no controllers.
    let parent = if layout.hierarchies().is_empty() { group.to_owned() } else { group.join("session") };
    let directory = state.unified.as_ref().map(|group| group.directory.clone());
    if directory != Some(parent.join("box")) || !state.legacy.is_empty() {
        return Err(format!("{state:?}"));
    }
    let unified = state.open_unified().map_err(text)?;
    let options = Clone3 { cgroup: unified.as_ref().map(AsFd::as_fd), ..Clone3::default() };
    let pid = match process::fork(options).map_err(text)? {
        Forked::Child => std::process::exit(0),
        Forked::Parent(pid, _) => pid,
    };
    process::wait(pid, true).map_err(text)?;
    state.remove().map_err(text)
}
