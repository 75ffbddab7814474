//! A monitor that a guest has taken over plants links in the one folder that it may write to, and hopes that the host
//! follows them when the machine is started again, looked at, or removed.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use moat_tests::{Moat, visit_with_machines, wait_until};

#[test]
fn links_in_the_jail_lead_nowhere() {
    visit_with_machines("jail_links::links_in_the_jail_lead_nowhere", None, inside);
}

/// What a file is, to the byte and the time of its last change.
fn looks(path: &Path) -> (Vec<u8>, u32, u32, i64) {
    let found = path.metadata().unwrap();
    let content = if found.is_file() { std::fs::read(path).unwrap() } else { Vec::new() };
    (content, found.uid(), found.mode(), found.ctime_nsec())
}

fn inside() {
    let moat = Moat::with_machines();
    let started = moat.run(&["-d", "--isolation", "microvm", "--name", "web", "busybox", "sleep", "1000"]);
    let id = started.success().trim().to_owned();
    let jail = moat.root().join("run/workloads").join(&id).join("vm");
    assert!(jail.metadata().unwrap().uid() >= 0x7000_0000, "it is the monitor's own");
    let folder = moat.path("canaries");
    std::fs::create_dir(&folder).unwrap();
    let canary = folder.join("canary");
    std::fs::write(&canary, "sings").unwrap();
    let before = looks(&canary);

    // The socket by which the agent is asked leads elsewhere: nobody goes there.
    let elsewhere = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let before_socket = looks(&folder);
    std::fs::rename(jail.join("vsock"), jail.join("kept")).unwrap();
    symlink(folder.join("socket"), jail.join("vsock")).unwrap();
    let told = moat.call(&["exec", "web", "true"]);
    assert!(told.failure().contains("the machine's socket is none any more"), "{told:?}");
    assert!(elsewhere.accept().is_err(), "nobody calls there");
    std::fs::remove_file(jail.join("vsock")).unwrap();
    std::fs::rename(jail.join("kept"), jail.join("vsock")).unwrap();

    // All names that the host makes there at the next start, and folders that it would remove.
    let plant = |name: &str, target: &Path| symlink(target, jail.join(name)).unwrap();
    for (name, target) in
        [("vsock_1025", &canary), ("vsock_1024", &canary), ("all", &folder), ("vm", &folder)]
    {
        plant(name, target);
    }
    std::fs::create_dir_all(jail.join("deep/er")).unwrap();
    symlink(&folder, jail.join("deep/er/link")).unwrap();
    kill(&moat);
    assert!(jail.join("all").symlink_metadata().is_err(), "they went with the machine");
    assert_eq!((looks(&canary), looks(&folder)), (before.clone(), before_socket.clone()));

    // Left behind by a host that lost its power, they are there before the start.
    plant_before_start(&jail, &canary, &folder);
    moat.call(&["start", "web"]).success();
    assert_eq!(moat.call(&["exec", "web", "echo", "up"]).success(), "up\n");
    moat.call(&["rm", "-f", "web"]).success();
    assert_eq!((looks(&canary), looks(&folder)), (before, before_socket));
}

fn plant_before_start(jail: &Path, canary: &Path, folder: &Path) {
    std::fs::create_dir_all(jail).unwrap();
    for name in ["vsock", "vsock_1025", "guest.json"] {
        symlink(canary, jail.join(name)).unwrap();
    }
    symlink(folder, jail.join("folder")).unwrap();
}

fn kill(moat: &Moat) {
    moat.call(&["kill", "web"]).success();
    wait_until(|| moat.status("web") == "exited");
}
