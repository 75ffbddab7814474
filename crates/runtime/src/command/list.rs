//! `list`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use moat_model::id::ContainerId;
use moat_model::oci;
use moat_sandbox::{Context, Result, container};
use serde::Serialize;

use super::Session;
use super::output::{json_line, print, table};
use crate::cli::{Format, ListArgs};

/// A container as runc lists it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    oci_version: String,
    id: String,
    pid: i32,
    status: String,
    bundle: PathBuf,
    rootfs: PathBuf,
    created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: String,
}

pub(crate) fn list(session: &Session<'_>, args: &ListArgs) -> Result<u8> {
    let ids = session.store.list()?;
    if args.quiet {
        print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>())?;
        return Ok(0);
    }
    let entries = entries(session, &ids)?;
    print(&match args.format {
        Format::Json => json_line(&entries)?,
        Format::Table => rows(&entries),
    })?;
    Ok(0)
}

/// One container that can not be read hides no other.
fn entries(session: &Session<'_>, ids: &[ContainerId]) -> Result<Vec<Entry>> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut entries = Vec::new();
    for id in ids {
        match entry(session, id, &users) {
            Ok(entry) => entries.push(entry),
            // Deleted since its name was read.
            Err(_) if session.store.open(id).is_err() => {}
            Err(error) => session.log.warn(&error.to_string()),
        }
    }
    Ok(entries)
}

fn entry(session: &Session<'_>, id: &ContainerId, users: &str) -> Result<Entry> {
    let (folder, state) = container::load(&session.store, id)?;
    let status = state.status(&folder).context(|| format!("container {id}"))?;
    let oci::State { oci_version, id, status, pid, bundle, annotations } = state.to_oci(status);
    let owner = user_name(users, state.owner);
    Ok(Entry {
        oci_version,
        id,
        pid,
        status,
        bundle,
        rootfs: state.rootfs,
        created: state.created,
        annotations,
        owner,
    })
}

fn rows(entries: &[Entry]) -> String {
    let row = |entry: &Entry| {
        let (pid, bundle) = (entry.pid.to_string(), entry.bundle.display().to_string());
        [&entry.id, &pid, &entry.status, &bundle, &entry.created, &entry.owner].map(String::clone)
    };
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    table(&std::iter::once(head).chain(entries.iter().map(row)).collect::<Vec<_>>())
}

/// The name of a user in passwd(5), `#UID` for one that has none.
fn user_name(users: &str, uid: u32) -> String {
    let uid = uid.to_string();
    let name = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    };
    users.lines().find_map(name).unwrap_or_else(|| format!("#{uid}"))
}

#[cfg(test)]
mod tests {
    use super::user_name;

    #[test]
    fn owners_have_names() {
        let users = "root:x:0:0:root:/root:/bin/bash\n\nbad\nyou:x:1000:1000::/home/you:/bin/sh\n";
        assert_eq!(user_name(users, 0), "root");
        assert_eq!(user_name(users, 1000), "you");
        assert_eq!(user_name(users, 7), "#7");
    }
}
