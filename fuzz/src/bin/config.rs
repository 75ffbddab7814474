//! Any bytes as config.json: it is read, or refused; what was read can be written and read again; and it is
//! planned, or refused, on every kind of host.
#![no_main]

use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use moat_linux::capability::Set;
use moat_model::id::ContainerId;
use moat_model::oci::Spec;
use moat_sandbox::cgroup::{Hierarchy, Layout, Unified};
use moat_sandbox::host::Host;
use moat_sandbox::plan::{self, Request};

fuzz_target!(|bytes: &[u8]| {
    let Ok(spec) = plan::parse_config(bytes, "config.json") else { return };
    let text = serde_json::to_vec(&spec).expect("a configuration can be written");
    let again: Spec = serde_json::from_slice(&text).expect("what was written can be read");
    assert_eq!(again, spec);
    for host in hosts() {
        behind_the_door(&spec, &host);
    }
});

fn unified() -> Unified {
    let controllers = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"];
    Unified {
        mount: PathBuf::from("/sys/fs/cgroup"),
        root: "/".to_owned(),
        own: "/own".to_owned(),
        controllers: controllers.map(str::to_owned).to_vec(),
        writable: true,
    }
}

fn hosts() -> [Host; 3] {
    let hierarchy = |name: &str| Hierarchy {
        mount: Path::new("/sys/fs/cgroup").join(name),
        root: "/".to_owned(),
        own: "/".to_owned(),
        controllers: vec![name.to_owned()],
        name: None,
        writable: true,
    };
    let names = ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"];
    let legacy = Layout::Legacy { hierarchies: names.map(hierarchy).to_vec(), unified: None };
    let host = |user: u32, cgroups: Layout| Host {
        user,
        group: user,
        in_user_namespace: false,
        groups_denied: false,
        cgroups,
        bounding: Set(0x1ff_feff_ffff),
        apparmor: user == 0,
        selinux: user == 0,
    };
    [host(0, Layout::Unified(unified())), host(0, legacy), host(1000, Layout::None)]
}

/// What is planned can be printed, and each step says what it is.
fn behind_the_door(spec: &Spec, host: &Host) {
    let id = ContainerId::new("fuzz").expect("a legal name");
    let request = Request {
        id: &id,
        bundle: Path::new("/bundle"),
        spec,
        no_pivot: false,
        no_new_keyring: false,
        init: false,
        wait_for_start: true,
    };
    let Ok(plan) = plan::plan(&request, host) else { return };
    for step in &plan.steps {
        assert!(!step.action.to_string().is_empty());
        let _ = step.action.by_hand();
    }
}
