//! Flags of `run`, as a program behind the wall sees them.

use crate::house::{House, yes};
use crate::{Case, Group, case};

pub(crate) const GROUP: Group = Group { title: "Flags of run", before, cases: CASES };

fn before(house: &House) {
    let env = house.file("env", "FROM=file\n");
    let own = format!("{}:/etc/own:ro", house.file("own", "own text\n"));
    let flags = "--hostname box --domainname example.org -e A=b -w /made/here -u web --group-add tape \
        --cap-drop CHOWN --cap-add SYS_PTRACE --security-opt no-new-privileges --ulimit nofile=77:88 \
        --shm-size 8m --tmpfs /scratch:size=4m,mode=1700 --read-only --label org.x=y --memory 64m \
        --cpus 0.5 --pids-limit 50 --oom-score-adj 200 --sysctl kernel.shmmax=4096 \
        --sysctl net.core.somaxconn=77 --stop-signal USR1";
    let more = ["--env-file", &env, "-v", &own];
    let flags: Vec<&str> = flags.split_whitespace().chain(more).collect();
    house.start("flags", &flags, "trap 'exit 9' USR1; while :; do sleep 0.1; done");
    house.start("plain", &[], "while :; do sleep 1; done");
}

/// The option of a mount in the workload named `flags`.
fn has_option(house: &House, target: &str, option: &str) -> String {
    let mounts = house.exec("flags", &format!("grep ' {target} ' /proc/mounts"));
    yes(mounts.split([' ', ',']).any(|word| word == option))
}

fn status(house: &House, name: &str, field: &str) -> String {
    let line = house.exec(name, &format!("grep ^{field}: /proc/1/status"));
    line.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

const CASES: &[Case] = &[
    case("`--env`", "b", |house| house.exec("flags", "echo $A")),
    case("`--env-file`", "file", |house| house.exec("flags", "echo $FROM")),
    case("environment of the image", "/bin", |house| house.exec("plain", "echo $PATH")),
    case("`--workdir`, which is made", "/made/here", |house| house.exec("flags", "pwd")),
    case("`--user`, by name", "1000", |house| status(house, "flags", "Uid")),
    case("`--group-add`, by name", "26", |house| {
        let groups = house.exec("flags", "grep ^Groups: /proc/1/status");
        groups.split_whitespace().skip(1).find(|group| *group == "26").unwrap_or_default().to_owned()
    }),
    case("`--hostname`", "box", |house| house.exec("flags", "hostname")),
    case("`--domainname`", "example.org", |house| house.exec("flags", "cat /proc/sys/kernel/domainname")),
    case("host name where none is given", "yes", |house| {
        yes(house.inspect("plain", "Id").starts_with(&house.exec("plain", "hostname")))
    }),
    case("capabilities", "00000000a80425fb", |house| status(house, "plain", "CapEff")),
    case("`--cap-add`, `--cap-drop`", "00000000a80c25fa", |house| status(house, "flags", "CapBnd")),
    case("`no-new-privileges`", "1", |house| status(house, "flags", "NoNewPrivs")),
    case("seccomp filter", "2", |house| status(house, "plain", "Seccomp")),
    case("`--privileged`", "000001ffffffffff", |house| {
        let args =
            ["--rm", "--privileged", "busybox", "sh", "-c", "grep CapEff /proc/self/status | cut -f 2"];
        house.run(&args).stdout.trim().to_owned()
    }),
    case("`--ulimit`", "77 88", |house| {
        let line = house.exec("flags", "grep 'open files' /proc/1/limits");
        line.split_whitespace().skip(3).take(2).collect::<Vec<_>>().join(" ")
    }),
    case("`--shm-size`", "yes", |house| has_option(house, "/dev/shm", "size=8192k")),
    case("`--tmpfs`: size", "yes", |house| has_option(house, "/scratch", "size=4096k")),
    case("`--tmpfs`: mode", "yes", |house| has_option(house, "/scratch", "mode=1700")),
    case("`--read-only`", "touch: /file: Read-only file system", |house| house.exec("flags", "touch /file")),
    case("`--label`", "y", |house| {
        house.moat.inspect("flags")["Config"]["Labels"]["org.x"].as_str().unwrap().to_owned()
    }),
    case("a single file", "own text", |house| house.exec("flags", "cat /etc/own")),
    case("a single file, read-only", "sh: can't create /etc/own: Read-only file system", |house| {
        house.exec("flags", "echo x > /etc/own")
    }),
    case("`--memory`", "67108864", |house| house.exec("flags", "cat /sys/fs/cgroup/memory.max")),
    case("`--cpus`", "50000 100000", |house| house.exec("flags", "cat /sys/fs/cgroup/cpu.max")),
    case("`--pids-limit`", "50", |house| house.exec("flags", "cat /sys/fs/cgroup/pids.max")),
    case("`--oom-score-adj`", "200", |house| house.exec("flags", "cat /proc/1/oom_score_adj")),
    case("`--sysctl` of IPC", "4096", |house| house.exec("flags", "cat /proc/sys/kernel/shmmax")),
    case("`--sysctl` of the network", "77", |house| house.exec("flags", "cat /proc/sys/net/core/somaxconn")),
    case("`--sysctl` of neither", "125", |house| {
        house.run(&["--rm", "--sysctl", "vm.swappiness=1", "busybox", "true"]).code.to_string()
    }),
    case("masked paths", "0", |house| house.exec("plain", "head -c 1 /proc/timer_list | wc -c")),
    case(
        "/proc/sys is read-only",
        "sh: can't create /proc/sys/kernel/panic: Read-only file system",
        |house| house.exec("plain", "echo 1 > /proc/sys/kernel/panic"),
    ),
    case(
        "control groups are read-only",
        "mkdir: can't create directory '/sys/fs/cgroup/x': Read-only file system",
        |house| house.exec("plain", "mkdir /sys/fs/cgroup/x"),
    ),
    case("own control group", "0::/", |house| house.exec("plain", "cat /proc/1/cgroup")),
    case(
        "/dev",
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
        |house| house.exec("plain", "echo $(ls /dev)"),
    ),
    case("a device that was made by hand", "head: /dev/sda: Operation not permitted", |house| {
        house.exec("plain", "mknod /dev/sda b 8 0; head -c 1 /dev/sda; rm /dev/sda")
    }),
    case("a device that everybody has", "5", |house| house.exec("plain", "head -c 5 /dev/urandom | wc -c")),
    case("options of /proc", "proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0", |house| {
        house.exec("plain", "grep '^proc /proc ' /proc/mounts")
    }),
    case("umask", "0022", |house| house.exec("plain", "umask")),
    case("own PID namespace", "1", |house| {
        house.exec("plain", "echo $(ps -o pid,args | grep 'do sleep 1;' | grep -v grep | awk '{print $1}')")
    }),
    case("no network but loopback", "lo", |house| house.exec("plain", "ls /sys/class/net")),
    case("`--stop-signal`", "9", |house| {
        house.say("stop flags");
        house.inspect("flags", "State.ExitCode")
    }),
];
