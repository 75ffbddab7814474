//! Where the walls are not alike, and why.

use crate::house::{House, refusal, yes};
use crate::{Case, Group, case};

pub(crate) const GROUP: Group = Group { title: "What belongs to one wall", before: |_| {}, cases: CASES };

const FOLDERS: &str = "folders are not shared with guests yet";

fn run(house: &House, flags: &[&str], script: &str) -> String {
    let done = house.on_networks("run", &[&["--rm"], flags, &["busybox", "sh", "-c", script]].concat());
    if done.code != 0 { refusal(&done) } else { done.stdout.trim().to_owned() }
}

const CASES: &[Case] = &[
    case("the kernel is the host's", "yes", |house| {
        let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        yes(run(house, &["--network", "none"], "cat /proc/sys/kernel/random/boot_id") == host.trim())
    })
    .differs("no", "its own kernel is the wall"),
    case("a named volume", "kept", |house| {
        run(house, &["-v", "kept:/data", "--network", "none"], "echo kept > /data/x; cat /data/x")
    })
    .differs("can not share folders", FOLDERS),
    case("a folder of the host", "here", |house| {
        let folder = house.path("folder");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("x"), "here\n").unwrap();
        run(house, &["-v", &format!("{}:/data", folder.display()), "--network", "none"], "cat /data/x")
    })
    .differs("can not share folders", FOLDERS),
    case("a device of the host", "yes", |house| {
        run(house, &["--device", "/dev/fuse", "--network", "none"], "test -c /dev/fuse && echo yes")
    })
    .differs("a device of the host", "the guest's kernel has its own devices"),
    case("`--pid host`", "yes", |house| {
        run(house, &["--pid", "host", "--network", "none"], "test $$ != 1 && echo yes")
    })
    .differs("a namespace of others (--pid)", "the guest's kernel has its own processes"),
    case("`--ipc host`", "yes", |house| run(house, &["--ipc", "host", "--network", "none"], "echo yes"))
        .differs("a namespace of others (--ipc)", "the guest's kernel has its own queues and segments"),
    case("`--network host`", "yes", |house| {
        run(house, &["--network", "host"], "test -e /sys/class/net/up0 && echo yes")
    })
    .differs("it can not share those of others", "the guest's kernel has its own network devices"),
];
