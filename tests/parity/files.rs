//! Files of a workload, from outside.

use crate::house::{House, yes};
use crate::{Case, Group, case};

pub(crate) const GROUP: Group = Group { title: "Files and changes", before, cases: CASES };

const NOT_YET: &str = "the host does not look into the guest's file system";

fn before(house: &House) {
    house.start("box", &["--memory", "64m"], "echo text > /new; rm /etc/group; while :; do sleep 1; done");
    moat_tests::wait_until(|| house.exec("box", "ls /etc/group").contains("No such"));
}

const CASES: &[Case] = &[
    case("`cp` out of it", "text", |house| {
        let to = house.path("out").display().to_string();
        let done = house.moat.call(&["cp", "box:/new", &to]);
        if done.code != 0 {
            return crate::house::refusal(&done);
        }
        std::fs::read_to_string(&to).unwrap().trim().to_owned()
    })
    .differs("it is a microVM", NOT_YET),
    case("`cp` into it", "carried", |house| {
        let from = house.file("in", "carried\n");
        let done = house.moat.call(&["cp", &from, "box:/in"]);
        if done.code != 0 {
            return crate::house::refusal(&done);
        }
        house.exec("box", "cat /in")
    })
    .differs("it is a microVM", NOT_YET),
    case("`diff`", "A /new", |house| {
        let done = house.moat.call(&["diff", "box"]);
        if done.code != 0 {
            return crate::house::refusal(&done);
        }
        done.stdout.lines().find(|line| line.contains("/new")).unwrap_or_default().to_owned()
    })
    .differs("it is a microVM", NOT_YET),
    case("`commit`, and a workload of the image", "text", |house| {
        let done = house.moat.call(&["commit", "box", "made:1"]);
        if done.code != 0 {
            return crate::house::refusal(&done);
        }
        house.run(&["--rm", "made:1", "cat", "/new"]).stdout.trim().to_owned()
    })
    .differs("it is a microVM", NOT_YET),
    case("`export`", "yes", |house| {
        let file = house.path("tar").display().to_string();
        let done = house.moat.call(&["export", "-o", &file, "box"]);
        if done.code != 0 {
            return crate::house::refusal(&done);
        }
        let listed = std::process::Command::new("tar").args(["-tf", &file]).output().unwrap();
        yes(String::from_utf8_lossy(&listed.stdout).lines().any(|name| name == "new"))
    })
    .differs("it is a microVM", NOT_YET),
    case("`update --memory`", "50331648", |house| {
        let done = house.moat.call(&["update", "--memory", "48m", "--memory-swap", "48m", "box"]);
        if done.code != 0 {
            return crate::house::refusal(&done);
        }
        house.exec("box", "cat /sys/fs/cgroup/memory.max")
    })
    .differs("it is a microVM", "the limits of a guest are not changed yet"),
];
