//! Containers of an ordinary user.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can not go on fails, and says where")]

use std::process::Command;

use moat_tests::{Bundle, Home, leftovers, program};
use serde_json::{Value, json};

const USER: u32 = 48_213;

/// The user with the built runtime; `$R` in a script is that, with a state root.
fn new_home() -> Home {
    Home::new(USER, &[&program()]).define("R", "$PWD/moat-runtime --root $PWD/state")
}

/// A bundle that belongs to the user, in a user namespace with these mappings.
fn give(bundle: &mut Bundle, mappings: &Value) {
    bundle.set("/linux/uidMappings", mappings.clone()).set("/linux/gidMappings", mappings.clone());
    bundle.push("/linux/namespaces", json!({ "type": "user" }));
    bundle.remove("/linux/resources");
    let owner = format!("{USER}:{USER}");
    let owned = Command::new("chown").args(["-R", "-h", &owner]).arg(bundle.path()).status().unwrap();
    assert!(owned.success());
}

fn single() -> Value {
    json!([{ "containerID": 0, "hostID": USER, "size": 1 }])
}

fn ranges() -> Value {
    json!([
        { "containerID": 0, "hostID": USER, "size": 1 },
        { "containerID": 1, "hostID": Home::FIRST_SUBORDINATE, "size": 65536 },
    ])
}

/// Every namespace is another than the caller's.
const NAMESPACES: &str = "for kind in user mnt pid uts ipc net cgroup; do readlink /proc/self/ns/$kind; done";

fn life(mappings: &Value, prepare: impl FnOnce(&mut Bundle)) {
    let home = new_home();
    let mut bundle = Bundle::shell("trap 'exit 9' TERM; while :; do sleep 0.05; done");
    if mappings == &single() {
        // Group 5 of devpts can only be had where it is mapped.
        bundle.remove_mount("/dev/pts");
    }
    prepare(&mut bundle);
    give(&mut bundle, mappings);
    let id = format!("moat-rootless-{}x", home.path("").file_name().unwrap().to_str().unwrap());
    let bundle_path = bundle.path().display().to_string();
    home.succeeds(&format!(
        "$R create --bundle {bundle_path} {id} >out 2>&1 </dev/null || {{ cat out >&2; exit 1; }}"
    ));
    let status = |word: &str| {
        let state: Value = serde_json::from_str(&home.succeeds(&format!("$R state {id}"))).unwrap();
        assert_eq!((&state["status"], &state["owner"]), (&json!(word), &json!(USER.to_string())));
    };
    status("created");
    home.succeeds(&format!("$R start {id}"));
    status("running");
    let inside = home.succeeds(&format!("$R exec {id} sh -c '{NAMESPACES}'"));
    let outside = home.succeeds(NAMESPACES);
    for (inside, outside) in inside.lines().zip(outside.lines()) {
        assert_ne!(inside, outside);
    }
    assert_eq!(inside.lines().count(), 7);
    assert_eq!(home.succeeds(&format!("$R exec {id} id -u")), "0\n");
    assert_eq!(home.succeeds(&format!("$R exec {id} stat -c %u /bin/busybox")), "0\n");
    assert_eq!(home.succeeds(&format!("$R exec {id} sh -c 'echo > /dev/null; hostname'")), "moat\n");
    assert_eq!(home.shell(&format!("$R exec {id} sh -c 'exit 5'")).status.code(), Some(5));
    let listed: Value = serde_json::from_str(&home.succeeds("$R list --format json")).unwrap();
    assert_eq!(listed[0]["id"], json!(id));
    home.succeeds(&format!("$R kill {id} TERM"));
    home.succeeds(&format!("until $R state {id} | grep -q stopped; do sleep 0.01; done; $R delete {id}"));
    assert_eq!(leftovers(&home.path("state"), &id), Vec::<String>::new());
    let code = home.shell(&format!("$R run --bundle {bundle_path} {id} & pid=$!; \
        until $R state {id} 2>/dev/null | grep -q running; do sleep 0.01; done; sleep 0.1; $R kill {id} TERM; wait $pid"));
    assert_eq!(code.status.code(), Some(9), "{code:?}");
    assert_eq!(leftovers(&home.path("state"), &id), Vec::<String>::new());
}

#[test]
fn a_container_with_one_id() {
    life(&single(), |_| {});
}

#[test]
fn a_container_with_ranges_of_ids() {
    life(&ranges(), |bundle| {
        bundle.set("/process/user/additionalGids", json!([10, 20]));
    });
}

#[test]
fn the_ids_of_a_range_are_the_subordinate_ones() {
    let home = new_home();
    let mut bundle =
        Bundle::shell("echo > /tmp/file; chown 1000:1001 /tmp/file; stat -c '%u %g' /tmp/file; id");
    bundle.set("/root/readonly", json!(false));
    let all = json!(["CAP_CHOWN"]);
    bundle.set("/process/capabilities", json!({ "bounding": all, "effective": all, "permitted": all }));
    give(&mut bundle, &ranges());
    let said = home.succeeds(&format!(
        "$R run --bundle {} moat-ranges-{}x",
        bundle.path().display(),
        std::process::id()
    ));
    assert!(said.starts_with("1000 1001\nuid=0(root) gid=0(root)"), "{said}");
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(bundle.rootfs().join("tmp/file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (Home::FIRST_SUBORDINATE + 999, Home::FIRST_SUBORDINATE + 1000));
}

/// The configuration that `spec --rootless` proposes runs as it is.
#[test]
fn the_proposed_configuration_runs() {
    let home = new_home();
    let mut bundle = Bundle::new(&["true"]);
    give(&mut bundle, &single());
    let id = format!("moat-proposed-{}x", std::process::id());
    let said = home.succeeds(&format!(
        "mkdir b; cd b; $R spec --rootless; cp -a {}/rootfs .; \
         sed -i 's/\"terminal\": true/\"terminal\": false/; s/\"sh\"/\"id\"/' config.json; $R run {id}",
        bundle.path().display()
    ));
    assert!(said.starts_with("uid=0(root) gid=0(root)"), "{said}");
    assert_eq!(leftovers(&home.path("state"), &id), Vec::<String>::new());
}

/// A range that nobody granted is refused with the words of newuidmap(1), and nothing stays.
#[test]
fn a_range_that_is_not_granted_is_refused() {
    let home = new_home();
    let mut bundle = Bundle::new(&["true"]);
    let mappings = json!([{ "containerID": 0, "hostID": USER, "size": 1 }, { "containerID": 1, "hostID": 1, "size": 10 }]);
    give(&mut bundle, &mappings);
    let id = format!("moat-refused-{}x", std::process::id());
    let output = home.shell(&format!("$R run --bundle {} {id}", bundle.path().display()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("newuidmap: ") && said.contains("hint: ") && said.contains("/etc/subuid"),
        "{said}"
    );
    assert_eq!(leftovers(&home.path("state"), &id), Vec::<String>::new());
}

/// Without a user namespace an ordinary user has nothing to build with.
#[test]
fn a_user_namespace_is_needed() {
    let home = new_home();
    let bundle = Bundle::new(&["true"]);
    let output = home.shell(&format!("$R run --bundle {} moat-needed", bundle.path().display()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("moat-runtime: linux.namespaces has no user namespace"), "{said}");
}
