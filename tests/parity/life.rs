//! What is done to a workload that runs.

use moat_tests::wait_until;

use crate::house::{House, yes};
use crate::{Case, Group, case};

pub(crate) const GROUP: Group = Group { title: "Life", before, cases: CASES };
pub(crate) const ENDS: Group = Group { title: "Restarts and health", before: before_ends, cases: ENDS_CASES };

fn before(house: &House) {
    let script = "echo up; echo noise >&2; trap 'echo bye; exit 3' TERM; trap 'echo usr' USR1; \
        while :; do sleep 0.1; done";
    house.start("web", &["--memory", "64m"], script);
    wait_until(|| house.moat.call(&["logs", "web"]).stderr.contains("noise"));
    house.start("talks", &[], "for i in 1 2 3; do echo line $i; done; exit 6");
    house.say("wait talks");
}

fn exec(house: &House, args: &[&str]) -> moat_tests::Output {
    house.moat.call(&[&["exec"], args].concat())
}

const CASES: &[Case] = &[
    case("`logs`", "up", |house| house.moat.call(&["logs", "web"]).stdout.trim().to_owned()),
    case("`logs`: standard error", "noise", |house| {
        house.moat.call(&["logs", "web"]).stderr.trim().to_owned()
    }),
    case("`logs --tail`", "line 3", |house| house.say("logs --tail 1 talks")),
    case("`logs --timestamps`", "yes", |house| {
        let line = house.say("logs -t --tail 1 talks");
        yes(line.starts_with("20") && line.ends_with("Z line 3"))
    }),
    case("`logs --follow` of one that has ended", "3", |house| {
        house.say("logs -f talks").lines().count().to_string()
    }),
    case("`wait`", "6", |house| house.say("wait talks")),
    case("`exec`: exit code", "5", |house| exec(house, &["web", "sh", "-c", "exit 5"]).code.to_string()),
    case("`exec`: streams apart", "out err", |house| {
        let done = exec(house, &["web", "sh", "-c", "echo out; echo err >&2"]);
        format!("{} {}", done.stdout.trim(), done.stderr.trim())
    }),
    case("`exec`: program that is not there", "127", |house| {
        exec(house, &["web", "nothing"]).code.to_string()
    }),
    case("`exec`: program that is none", "126", |house| {
        exec(house, &["web", "/etc/passwd"]).code.to_string()
    }),
    case("`exec -i`", "200000", |house| {
        house.moat.call_with(&["exec", "-i", "web", "wc", "-c"], &[b'x'; 200_000]).stdout.trim().to_owned()
    }),
    case("`exec -u -w -e`", "1000 /tmp 2", |house| {
        let done = exec(
            house,
            &["-u", "web", "-w", "/tmp", "-e", "B=2", "web", "sh", "-c", "echo $(id -u) $(pwd) $B"],
        );
        done.stdout.trim().to_owned()
    }),
    case("`exec -t`", "typed\\r\\n", |house| {
        exec(house, &["-t", "web", "sh", "-c", "test -t 1 && echo typed"]).stdout.escape_default().to_string()
    }),
    case("`exec -d`", "made", |house| {
        exec(house, &["-d", "web", "sh", "-c", "echo made > /tmp/made"]).success();
        wait_until(|| !house.exec("web", "cat /tmp/made").contains("No such"));
        house.exec("web", "cat /tmp/made")
    }),
    case("`exec` in nothing", "125", |house| house.code("exec nothing true")),
    case("`exec`: same capabilities", "00000000a80425fb", |house| {
        house.exec("web", "grep CapEff /proc/self/status").split_whitespace().nth(1).unwrap().to_owned()
    }),
    case("`exec`: same filter", "2", |house| {
        house.exec("web", "grep ^Seccomp: /proc/self/status").split_whitespace().nth(1).unwrap().to_owned()
    }),
    case("`top`", "yes", |house| yes(house.say("top web").contains("sh -c echo up"))),
    case("`stats`: processes", "yes", |house| {
        let count: u32 = house.say("stats --no-stream --format {{.PIDs}} web").parse().unwrap();
        yes((1..=3).contains(&count))
    }),
    case("`stats`: memory and its limit", "yes 64MiB", |house| {
        let text = house.moat.call(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "web"]).stdout;
        let (used, limit) = text.trim().split_once(" / ").unwrap();
        format!("{} {limit}", yes(!used.starts_with("0B")))
    }),
    case("`stats`: pressure", "yes", |house| {
        yes(house
            .say("stats --no-stream --format {{.Pressure}} web")
            .split('/')
            .all(|share| share.ends_with('%')))
    }),
    case("`inspect`: it runs", "true", |house| house.inspect("web", "State.Running")),
    case("`ps`", "Up", |house| {
        house.say("ps --filter name=web --format {{.Status}}").split(' ').next().unwrap().to_owned()
    }),
    case("`ps` of one that has ended", "Exited (6)", |house| {
        let status = house.say("ps -a --filter name=talks --format {{.Status}}");
        status.split(' ').take(2).collect::<Vec<_>>().join(" ")
    }),
    case("`pause`", "paused", |house| {
        house.say("pause web");
        house.moat.status("web")
    }),
    case("`exec` in one that is paused", "125", |house| house.code("exec web true")),
    case("`stats` of one that is paused", "0", |house| house.code("stats --no-stream web")),
    case("`unpause`", "running", |house| {
        house.say("unpause web");
        house.moat.status("web")
    }),
    case("`kill --signal`", "usr", |house| {
        house.say("kill --signal USR1 web");
        wait_until(|| house.say("logs web").contains("usr"));
        "usr".to_owned()
    }),
    case("`rename`", "/other", |house| {
        house.say("rename web other");
        let name = house.inspect("other", "Name");
        house.say("rename other web");
        name
    }),
    case("`rm` of one that runs", "1", |house| house.code("rm web")),
    case("`stop`: its own exit code", "3", |house| {
        house.exec("web", "echo kept > /kept");
        house.say("stop web");
        house.inspect("web", "State.ExitCode")
    }),
    case("`stop`: its last words", "yes", |house| yes(house.say("logs web").ends_with("bye"))),
    case("`exec` in one that has ended", "125", |house| house.code("exec web true")),
    case("`start` again: what was written", "kept", |house| {
        house.say("start web");
        house.exec("web", "cat /kept")
    }),
    case("`restart`", "yes running", |house| {
        let before = house.inspect("web", "State.StartedAt");
        house.say("restart -t 0 web");
        format!("{} {}", yes(before != house.inspect("web", "State.StartedAt")), house.moat.status("web"))
    }),
    case("`kill`", "137", |house| {
        house.say("kill web");
        house.say("wait web")
    }),
    case("`start --attach`: exit code", "6", |house| house.code("start --attach talks")),
    case("`events`", "create start die", |house| {
        house.run(&["--name", "told", "busybox", "true"]).success();
        let told = house.say("events --since 1h --until 0s --filter container=told --format {{.Action}}");
        told.split_whitespace().filter(|action| !action.contains("attach")).collect::<Vec<_>>().join(" ")
    }),
    case("`rm`", "", |house| {
        house.say("rm web talks");
        house.say("ps -aq --filter name=web --filter name=talks")
    }),
];

fn before_ends(house: &House) {
    house.start("flaky", &["--restart", "on-failure:2"], "exit 3");
    let health = ["--health-cmd", "test -e /well", "--health-interval", "300ms", "--health-retries", "2"];
    house.start("well", &health, "touch /well; while :; do sleep 1; done");
    let attach = ["attach", "asks"];
    house.start("asks", &["-i"], "read word; echo got $word; exit 4");
    house.keep("attach", house.moat.call_with(&attach, b"hello\n"));
}

fn health(house: &House, wanted: &str) -> String {
    wait_until(|| house.inspect("well", "State.Health.Status") == wanted);
    wanted.to_owned()
}

const ENDS_CASES: &[Case] = &[
    case("`attach`: input and output", "got hello", |house| house.kept("attach").stdout.trim().to_owned()),
    case("`attach`: exit code", "4", |house| house.kept("attach").code.to_string()),
    case("`--restart on-failure:2`: starts", "2", |house| {
        wait_until(|| house.moat.status("flaky") == "exited");
        house.inspect("flaky", "RestartCount")
    }),
    case("`--restart on-failure:2`: exit code", "3", |house| house.inspect("flaky", "State.ExitCode")),
    case("`--health-cmd`: healthy", "healthy", |house| health(house, "healthy")),
    case("`--health-cmd`: unhealthy", "unhealthy", |house| {
        house.exec("well", "rm /well");
        health(house, "unhealthy")
    }),
    case("`ps` of one that is unhealthy", "yes", |house| yes(house.say("ps").contains("(unhealthy)"))),
    case("`--health-tcp`", "healthy", |house| {
        let flags = ["-d", "--name", "port", "--health-tcp", "80", "--health-interval", "300ms"];
        let script = "while :; do echo x | nc -l -p 80; done";
        let started = house.run(&[&flags[..], &["busybox", "sh", "-c", script]].concat());
        if started.code != 0 {
            return crate::house::refusal(&started);
        }
        wait_until(|| house.inspect("port", "State.Health.Status") != "starting");
        house.inspect("port", "State.Health.Status")
    })
    .differs("a health check over the network", "a check would have to come from within the guest's network"),
    case("`rm --force`", "", |house| {
        house.clear();
        house.say("ps -aq")
    }),
];
