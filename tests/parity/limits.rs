//! Limits that are reached.

use crate::house::{House, yes};
use crate::{Case, Group, case};

pub(crate) const GROUP: Group = Group { title: "Limits that are reached", before, cases: CASES };

fn before(house: &House) {
    let script = "head -c 200000000 /dev/zero | tail";
    house.keep(
        "greedy",
        house.run(&[
            "--name",
            "greedy",
            "--memory",
            "40m",
            "--memory-swap",
            "40m",
            "busybox",
            "sh",
            "-c",
            script,
        ]),
    );
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 2 & done; wait";
    house.keep("many", house.run(&["--rm", "--pids-limit", "5", "busybox", "sh", "-c", script]));
}

const CASES: &[Case] = &[
    case("out of memory: exit code", "137", |house| house.kept("greedy").code.to_string()),
    case("out of memory: the report", "yes", |house| {
        yes(house.kept("greedy").stderr.contains("ran out of memory"))
    }),
    case("out of memory: the event", "yes", |house| {
        let told = house.say("events --since 1h --until 0s --filter container=greedy --format {{.Action}}");
        yes(told.lines().any(|action| action == "oom"))
    }),
    case("out of memory: `inspect`", "true", |house| house.inspect("greedy", "State.OOMKilled")),
    case("too many processes", "yes", |house| yes(house.kept("many").stderr.contains("can't fork"))),
];
