//! Workloads of an ordinary user.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde_json::Value;

use moat_tests::{HOST, Home, LayerTar, Moat, OUTSIDE, Place, TarEntry, Wire, plain_layout, sh, wait_until};

const USER: u32 = 48_217;
const NEIGHBOUR: u32 = 48_218;

/// Image `box`: busybox, and a file of this owner.
fn furnish(home: &Home, owner: (u32, u32)) {
    let mut layer = LayerTar::new();
    layer.folder("bin").folder("etc").folder("tmp");
    let busybox = std::fs::read("/bin/busybox").unwrap();
    layer.entry(&TarEntry { content: &busybox, mode: 0o755, ..TarEntry::new(b'0', "bin/busybox") });
    for name in ["sh", "id", "cat", "echo", "sleep", "stat", "true", "ls", "tty", "chown", "readlink"] {
        layer.entry(&TarEntry { link: "busybox", ..TarEntry::new(b'2', &format!("bin/{name}")) });
    }
    layer.file("etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:7:8::/tmp:/bin/sh\n");
    layer.entry(&TarEntry { owner, mode: 0o640, content: b"web's\n", ..TarEntry::new(b'0', "etc/web") });
    plain_layout(&home.path("layout"), &[layer.finish()]);
    home.succeeds("$M load --input layout && $M images --quiet | grep . && $M tag $($M images --quiet) box");
}

/// A user with the built program and image `box`; `$M` in a script is the program.
fn house(home: Home, owner: (u32, u32)) -> Home {
    let home = home.define("M", "$PWD/moat");
    furnish(&home, owner);
    home
}

fn new_house() -> Home {
    house(Home::new(USER, &[Moat::empty().program()]), (7, 8))
}

/// There is no workload, and nobody is in the user's namespace any more.
fn nothing_is_left(home: &Home) {
    assert_eq!(home.succeeds("$M ps --all --quiet"), "");
    assert!(home.succeeds("$M system check").contains("everything is as it should be"));
    let members = std::fs::read_to_string(home.path(".local/share/moat/run/members")).unwrap();
    let processes = members.lines().map(|line| PathBuf::from("/proc").join(line.split(' ').next().unwrap()));
    processes.for_each(|process| wait_until(|| !process.exists()));
}

/// The folder of the only workload that there is.
fn only_workload(home: &Home) -> PathBuf {
    let workloads = home.path(".local/share/moat/workloads");
    std::fs::read_dir(workloads).unwrap().next().unwrap().unwrap().path()
}

/// The monitor of the only workload that there is.
fn monitor(home: &Home) -> u64 {
    let state = std::fs::read(only_workload(home).join("state.json")).unwrap();
    serde_json::from_slice::<Value>(&state).unwrap()["monitor"]["pid"].as_u64().unwrap()
}

#[test]
fn run_from_start_to_end() {
    let home = new_house();
    assert_eq!(home.succeeds("$M run --rm --network none box id -u"), "0\n");
    assert_eq!(home.succeeds("echo word | $M run --rm -i --network none box cat"), "word\n");
    assert_eq!(home.succeeds("$M run --rm -t --network none box tty").trim_end(), "/dev/pts/0");
    assert_eq!(home.shell("$M run --rm --network none box sh -c 'exit 7'").status.code(), Some(7));
    assert_eq!(home.shell("$M run --rm --network none box nothing").status.code(), Some(127));
    let owner = home.succeeds("$M run --rm --network none box stat -c '%u %g %a' /etc/web");
    assert_eq!(owner, "7 8 640\n");
    let as_web = "$M run --rm --network none --user web box sh -c 'id -u; cat /etc/web'";
    assert_eq!(home.succeeds(as_web), "7\nweb's\n");
    // The host's network is the user's; /sys is then the host's, too.
    assert_eq!(
        home.succeeds("$M run --rm --network host box sh -c 'ls -d /sys/class/net/lo'"),
        "/sys/class/net/lo\n"
    );
    nothing_is_left(&home);
}

#[test]
fn a_workload_that_stays() {
    let home = new_house();
    home.succeeds("$M run --detach --name stays --network none box sh -c 'echo said; sleep 100000'");
    wait_until(|| home.succeeds("$M logs stays") == "said\n");
    assert_eq!(home.succeeds("$M ps --format '{{.Names}}'"), "stays\n");
    assert_eq!(home.succeeds("$M exec stays id -u"), "0\n");
    assert_eq!(home.succeeds("$M exec --user web stays id -g"), "8\n");
    assert_eq!(home.shell("$M exec stays sh -c 'exit 3'").status.code(), Some(3));
    home.succeeds(
        "echo carried > carried; $M cp carried stays:/tmp/carried; $M exec stays chown 7:8 /tmp/carried",
    );
    assert_eq!(home.succeeds("$M exec stays cat /tmp/carried"), "carried\n");
    home.succeeds("$M cp stays:/tmp/carried back; cmp carried back");
    assert_eq!(home.succeeds("$M diff stays"), "C /tmp\nA /tmp/carried\n");
    let file = std::fs::metadata(only_workload(&home).join("upper/tmp/carried")).unwrap();
    let first = Home::FIRST_SUBORDINATE;
    assert_eq!(
        (file.uid(), file.gid()),
        (first + 6, first + 7),
        "ids inside are the subordinate ones outside"
    );
    home.succeeds(
        "$M stop --time 0 stays; $M start stays; $M exec stays cat /tmp/carried; $M restart --time 0 stays",
    );
    home.succeeds("$M stats --no-stream stays; $M top stays; $M inspect stays");
    home.succeeds("$M stop --time 0 stays; $M commit stays kept");
    assert_eq!(home.succeeds("$M run --rm --network none kept stat -c %u /tmp/carried"), "7\n");
    home.succeeds("$M rm stays");
    nothing_is_left(&home);
}

#[test]
fn volumes_keep_their_owners() {
    let home = new_house();
    home.succeeds(
        "$M run --rm --network none -v data:/data box sh -c 'echo kept > /data/f; chown 7 /data/f'",
    );
    let read = "$M run --rm --network none -v data:/data:ro box sh -c 'cat /data/f; stat -c %u /data/f'";
    assert_eq!(home.succeeds(read), "kept\n7\n");
    home.succeeds("mkdir own; echo mine > own/f");
    let bound = home
        .succeeds("$M run --rm --network none -v $PWD/own:/own box sh -c 'cat /own/f; stat -c %u /own/f'");
    assert_eq!(bound, "mine\n0\n");
    assert_eq!(home.succeeds("$M volume ls --quiet; $M volume rm data"), "data\ndata\n");
    nothing_is_left(&home);
}

/// Whoever comes first makes the namespace, and all others join it.
#[test]
fn all_are_in_one_namespace() {
    let home = new_house();
    let crowd = home.succeeds(
        "for i in 1 2 3 4 5 6; do \
           $M run --detach --network none --name crowd$i box sh -c 'readlink /proc/self/ns/user; sleep 100000' >/dev/null & \
         done; wait; for i in 1 2 3 4 5 6; do until $M logs crowd$i | grep user; do sleep 0.05; done; done",
    );
    let mut namespaces: Vec<&str> = crowd.lines().collect();
    assert_eq!(namespaces.len(), 6, "{crowd}");
    namespaces.dedup();
    assert_eq!(namespaces.len(), 1, "{crowd}");
    home.succeeds("$M rm --force $($M ps --quiet)");
    nothing_is_left(&home);
}

/// Without its monitor the workload is still reached, and removed.
#[test]
fn a_monitor_that_was_killed() {
    let home = new_house();
    home.succeeds("$M run --detach --name orphan --user web --network none box sleep 100000");
    let monitor = monitor(&home);
    home.succeeds(&format!("kill -9 {monitor}"));
    wait_until(|| !PathBuf::from(format!("/proc/{monitor}")).exists());
    assert_eq!(home.succeeds("$M exec orphan id -u"), "7\n");
    home.succeeds("$M rm --force orphan");
    nothing_is_left(&home);
}

#[test]
fn a_user_without_ranges_has_one_id() {
    let home = house(Home::without_ranges(USER, &[Moat::empty().program()]), (0, 0));
    assert_eq!(home.succeeds("$M run --rm --network none box id -u"), "0\n");
    let refused = home.shell("$M run --rm --network none --user 7 box id -u");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(125), "{said}");
    assert!(said.contains("user 7 is none of the ids that this user may map"), "{said}");
    assert!(said.contains("hint: `usermod --add-subuids"), "{said}");
    nothing_is_left(&home);
}

/// What can not be had is refused, and told.
#[test]
fn limits_need_a_control_group() {
    let home = new_house();
    let refused = home.shell("$M run --rm --network none --memory 64m box true");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(125), "{said}");
    assert!(said.contains("memory"), "{said}");
    assert!(said.contains("this user may make no group"), "{said}");
    nothing_is_left(&home);
}

/// A bridge is the host's: what an ordinary user has is a way to the outside and published ports, by pasta.
#[test]
fn the_default_network_leads_outside() {
    let wire = Wire::lay();
    let home = new_house().with_tun();
    sh("ip addr add 198.51.100.9/32 dev lo");
    let _loopback = Place::host().serve("tcp", "198.51.100.9", 80);
    let _private = Place::host().serve("tcp", "127.0.0.1", 81);
    let _outside = wire.outside().serve("tcp", "0.0.0.0", 80);
    let place = |name: &str| {
        let format = format!("$M inspect --format '{{{{.State.Pid}}}}' {name}");
        Place::of_process(home.succeeds(&format).trim().parse().unwrap())
    };
    home.succeeds("$M run --detach --name one box sleep 100000");
    let one = place("one");
    assert_eq!(one.ask("tcp", "198.51.100.9", 80).as_deref(), Some("198.51.100.9"));
    assert_eq!(one.ask("tcp", OUTSIDE, 80).as_deref(), Some(HOST));
    // What listens on the host's loopback alone is not for workloads.
    for address in ["127.0.0.1", "10.0.2.2", HOST] {
        assert_eq!(one.ask("tcp", address, 81), None, "{address}");
    }
    home.succeeds("$M rm --force one");
    home.succeeds(
        "$M run --detach --name web -p 8080:80 -p 5353:5354/udp -p 127.0.0.1:9000-9001:90-91 box sleep 100000",
    );
    let web = place("web");
    let _servers =
        [("tcp", 80), ("udp", 5354), ("tcp", 91)].map(|(kind, port)| web.serve(kind, "0.0.0.0", port));
    assert_eq!(wire.outside().ask("tcp", HOST, 8080).as_deref(), Some(OUTSIDE));
    assert_eq!(wire.outside().ask("udp", HOST, 5353).as_deref(), Some(OUTSIDE));
    assert!(Place::host().ask("tcp", "127.0.0.1", 8080).is_some());
    assert!(Place::host().ask("tcp", "127.0.0.1", 9001).is_some());
    assert_eq!(wire.outside().ask("tcp", HOST, 9001), None);
    assert_eq!(
        home.succeeds("$M port web"),
        "80/tcp -> 0.0.0.0:8080\n90/tcp -> 127.0.0.1:9000\n91/tcp -> 127.0.0.1:9001\n5354/udp -> 0.0.0.0:5353\n"
    );
    let taken = home.shell("$M run --rm -p 8080:80 box true");
    assert!(String::from_utf8_lossy(&taken.stderr).contains("port 0.0.0.0:8080/tcp of the host is in use"));
    // Another shares it.
    let namespace = |name: &str| home.succeeds(&format!("$M exec {name} readlink /proc/self/ns/net"));
    home.succeeds("$M run --detach --name two --network container:web box sleep 100000");
    assert_eq!(namespace("two"), namespace("web"));
    home.succeeds("$M rm --force two");
    // It lives as long as the monitor.
    let pasta = sh("ss -lntpH 'sport = :8080' | sed 's/.*pid=//; s/,.*//'");
    sh(&format!("kill -9 {}", monitor(&home)));
    wait_until(|| !PathBuf::from(format!("/proc/{pasta}")).exists());
    home.succeeds("$M rm --force web");
    // A stop ends it, too, and the ports are free again.
    home.succeeds("$M run --detach --name web -p 8080:80 box sleep 100000; $M rm --force web");
    assert_eq!(sh("ss -lntH 'sport = :8080'"), "");
    nothing_is_left(&home);
}

#[test]
fn networks_that_an_ordinary_user_has_not() {
    let _wire = Wire::lay();
    let home = new_house().with_tun();
    for (line, said) in [
        ("network create blue", "an ordinary user can make no networks"),
        ("run --rm --network blue box true", "network blue: an ordinary user has but the default network"),
        (
            "run --rm --ip 10.0.0.7 box true",
            "an ordinary user can not choose addresses or names on a network",
        ),
        ("run --rm -p 80:80/sctp box true", "an ordinary user can publish no port of SCTP"),
        ("run --rm -p 80:80 box true", "EACCES"),
    ] {
        let refused = home.shell(&format!("$M {line}"));
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && text.contains(said), "{line}: {text}");
    }
    // No program, or no way to make a tap.
    sh("mount --bind /dev/null $(readlink -f /usr/bin/pasta)");
    let missing = home.shell("$M run --rm box true");
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(text.contains("there is no program pasta") && text.contains("hint: install it"), "{text}");
    sh("umount $(readlink -f /usr/bin/pasta)");
    std::fs::remove_file(home.path("tun")).unwrap();
    let node = sh("stat -c %a /dev/net/tun");
    if node == "600" {
        let closed = home.shell("$M run --rm box true");
        let text = String::from_utf8_lossy(&closed.stderr).into_owned();
        assert!(text.contains("pasta ended at once") && text.contains("hint: /dev/net/tun"), "{text}");
    }
    nothing_is_left(&home);
}

/// A neighbour's state and workloads are nothing to a user.
#[test]
fn two_users_side_by_side() {
    let (one, other) = (new_house(), house(Home::new(NEIGHBOUR, &[Moat::empty().program()]), (7, 8)));
    for home in [&one, &other] {
        home.succeeds("$M run --detach --name same --network none box sleep 100000");
    }
    let theirs = one.path(".local/share/moat");
    let refused = other.shell(&format!("$M --root {} ps", theirs.display()));
    assert!(!refused.status.success());
    for home in [&one, &other] {
        assert_eq!(home.succeeds("$M ps --format '{{.Names}}'"), "same\n");
        home.succeeds("$M rm --force same");
        nothing_is_left(home);
    }
}
