//! `--isolation microvm` from outside: the same command line behind a machine's wall. It needs KVM with hardware
//! virtualization, so it runs in the emulated host, where a boot costs seconds: one visit answers many questions.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod network;

use moat_tests::{Moat, Output, visit_with_machines, wait_until};

#[test]
fn workloads_run_in_machines() {
    visit_with_machines("workloads_run_in_machines", None, inside);
}

#[test]
fn machines_are_on_networks() {
    visit_with_machines("machines_are_on_networks", None, network::inside);
}

/// Debian's kernel for clouds, whose drivers are modules, behind the same command line.
#[test]
fn a_distributions_kernel_runs_workloads() {
    match std::env::var_os("MOAT_CLOUD_KERNEL") {
        Some(_) => visit_with_machines("a_distributions_kernel_runs_workloads", None, distribution),
        None => println!("skipped: there is no unpacked kernel package in MOAT_CLOUD_KERNEL"),
    }
}

fn distribution() {
    let moat = Moat::new();
    let package = std::env::var("MOAT_CLOUD_KERNEL").unwrap();
    moat.call(&["kernel", "import", "--name", "cloud", &package]).success();
    moat.call(&["kernel", "use", "cloud"]).success();
    let script = "uname -r; ip -4 addr show eth0; ls /sys/class/net; echo kept > /file; cat /file";
    let args = ["run", "--name", "box", "--isolation", "microvm", "busybox", "sh", "-c", script];
    let done = moat.call(&args);
    let text = done.success();
    assert!(text.contains("-cloud-amd64") && text.contains("inet ") && text.ends_with("kept\n"), "{text}");
    assert!(text.contains("eth0\nlo\n"), "{text}");
    moat.call(&["rm", "box"]).success();
}

/// A host without hardware virtualization is told, and gets no container in place of a machine.
#[test]
fn a_host_without_virtualization_is_told() {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        println!("skipped: this host has hardware virtualization");
        return;
    }
    let moat = Moat::new();
    let told = moat.run(&["--rm", "--isolation", "microvm", "busybox", "true"]);
    assert_eq!((told.code, &*told.stdout), (125, ""));
    assert!(told.stderr.contains("neither VMX nor SVM") && told.stderr.contains("hint: "), "{told:?}");
    assert!(moat.call(&["compare", "busybox"]).failure().contains("neither VMX nor SVM"));
    assert_eq!(moat.call(&["ps", "-aq"]).success(), "");
}

fn inside() {
    let moat = Moat::with_machines();
    streams_and_codes(&moat);
    a_life(&moat);
    what_is_written_stays(&moat);
    memory(&moat);
    a_killed_monitor(&moat);
    compared(&moat);
    refusals(&moat);
}

fn run(moat: &Moat, args: &[&str]) -> Output {
    moat.run(&[&["--isolation", "microvm"], args].concat())
}

fn streams_and_codes(moat: &Moat) {
    let script = "echo out; echo err >&2; uname -r; hostname; echo $$; cat /proc/uptime; exit 7";
    let done = run(moat, &["--rm", "--explain", "--hostname", "inner", "busybox", "sh", "-c", script]);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(done.code, 7, "{done:?}");
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(lines[0] == "out" && lines[1] != host.trim() && lines[2..4] == ["inner", "1"], "{done:?}");
    // The machine is younger than the one around it.
    let seconds = |text: &str| text.split(' ').next().unwrap().parse::<f64>().unwrap();
    assert!(seconds(lines[4]) < seconds(&std::fs::read_to_string("/proc/uptime").unwrap()), "{done:?}");
    assert!(done.stderr.contains("err\n") && done.stderr.contains("until its agent is ready"), "{done:?}");

    let mut input = Vec::new();
    (0..200_000).for_each(|number| input.extend(format!("{number}\n").bytes()));
    let args = ["run", "--network", "none", "--isolation", "microvm", "--rm", "-i", "busybox", "sort", "-n"];
    let sorted = moat.call_with(&args, &input);
    assert!(sorted.success().as_bytes() == input, "{} bytes come back", sorted.stdout.len());

    assert_eq!(run(moat, &["--rm", "busybox", "no-such-program"]).code, 127);
    assert_eq!(run(moat, &["--rm", "-t", "busybox", "echo", "typed"]).success(), "typed\r\n");
    assert_eq!(moat.call(&["ps", "-aq"]).success(), "", "--rm leaves nothing");
}

fn start(moat: &Moat, name: &str, script: &str) {
    run(moat, &["-d", "--name", name, "busybox", "sh", "-c", script]).success();
}

fn a_life(moat: &Moat) {
    start(moat, "web", "echo up; trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done");
    let exec =
        moat.call(&["exec", "-u", "web", "-e", "A=b", "web", "sh", "-c", "id -u; echo $A >&2; exit 5"]);
    assert_eq!((exec.code, &*exec.stdout, &*exec.stderr), (5, "1000\n", "b\n"));
    assert_eq!(moat.call_with(&["exec", "-i", "web", "wc", "-c"], b"twelve bytes").success().trim(), "12");
    assert_eq!(moat.call(&["exec", "web", "no-such-program"]).code, 127);
    assert!(moat.call(&["top", "web"]).success().contains("sh -c echo up"));
    let stats = moat.call(&["stats", "--no-stream", "--format", "{{.PIDs}}", "web"]);
    assert!(stats.success().trim().parse::<u32>().unwrap() > 0, "{stats:?}");
    jail(moat);

    moat.call(&["pause", "web"]).success();
    assert_eq!(moat.status("web"), "paused");
    assert!(moat.call(&["exec", "web", "true"]).failure().contains("paused"));
    moat.call(&["unpause", "web"]).success();
    assert_eq!(moat.status("web"), "running");
    assert!(moat.call(&["cp", "web:/etc/passwd", "/tmp/x"]).failure().contains("it is a microVM"));

    moat.call(&["stop", "web"]).success();
    assert_eq!(moat.inspect("web")["State"]["ExitCode"], 3);
    assert_eq!(moat.call(&["logs", "web"]).success(), "up\nbye\n");
    moat.call(&["start", "web"]).success();
    moat.call(&["pause", "web"]).success();
    moat.call(&["kill", "web"]).success();
    assert_eq!(moat.call(&["wait", "web"]).success().trim(), "137");
    moat.call(&["rm", "web"]).success();
}

/// The monitor is nobody, without privileges, and with nothing but what its machine is made of.
fn jail(moat: &Moat) {
    let shown = moat.inspect("web");
    let pid = shown["State"]["Pid"].as_u64().unwrap();
    let jail = &shown["Jail"];
    assert_eq!(jail["Root"], serde_json::json!(["dev", "moat-vmm", "proc", "run"]), "{jail}");
    let kinds: Vec<_> = jail["Namespaces"].as_object().unwrap().keys().collect();
    assert_eq!(kinds, ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"], "{jail}");
    assert!(
        jail["User"].as_u64().unwrap() >= 0x7000_0000 && jail["SeccompFilters"].as_u64().unwrap() > 0,
        "{jail}"
    );
    assert_eq!((&jail["Capabilities"], &jail["NoNewPrivileges"]), (&0.into(), &true.into()), "{jail}");
    assert!(jail["Cgroup"].as_str().unwrap().contains("/moat/"), "{jail}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let users = field("Uid:");
    assert!(users.iter().all(|user| user.parse::<u32>().unwrap() >= 0x7000_0000), "{users:?}");
    assert_eq!(field("CapEff:"), ["0000000000000000"]);
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (vec!["1".to_owned()], vec!["2".to_owned()]));
    assert_eq!(field("NSpid:").last().unwrap(), "1");
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{kind}");
    }
    let names = std::fs::read_dir(format!("/proc/{pid}/root")).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["dev", "moat-vmm", "proc", "run"]);
}

fn what_is_written_stays(moat: &Moat) {
    start(moat, "disk", "cat /kept; date > /kept; echo more >> /kept");
    assert_eq!(moat.call(&["wait", "disk"]).success().trim(), "0");
    let again = moat.call(&["start", "--attach", "disk"]);
    assert!(again.success().ends_with("more\n"), "{again:?}");
    moat.call(&["rm", "disk"]).success();
}

fn memory(moat: &Moat) {
    let script = "head -c 100000000 /dev/zero | tail";
    let done = run(moat, &["--name", "greedy", "--memory", "40m", "busybox", "sh", "-c", script]);
    assert_eq!(done.code, 137, "{done:?}");
    assert!(done.stderr.contains("ran out of memory"), "{done:?}");
    assert_eq!(moat.inspect("greedy")["State"]["OOMKilled"], true);
    moat.call(&["rm", "greedy"]).success();
}

fn a_killed_monitor(moat: &Moat) {
    start(moat, "lost", "sleep 1000");
    let pid = moat.inspect("lost")["State"]["Pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_until(|| moat.status("lost") == "exited");
    let state = moat.inspect("lost")["State"].clone();
    assert_eq!(state["ExitCode"], 255, "{state}");
    assert_eq!(state["Error"], "the monitor of its machine was killed by signal 9");
    moat.call(&["rm", "lost"]).success();
}

/// One process, seen behind both walls: the container has the host's kernel, the machine its own, and no more.
fn compared(moat: &Moat) {
    let shown = moat.call(&["compare", "busybox"]);
    let text = shown.success();
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
    let words = |name: &str| line(name)[name.len()..].split_whitespace().collect::<Vec<_>>();
    let kernel = words("kernel");
    assert!(kernel[0] == "=" && kernel[1] == kernel[3] && kernel[2] != kernel[1], "{text}");
    assert_eq!(words("process id")[..2], ["1", "1"], "{text}");
    assert_eq!(words("user and group"), ["=", "0:0", "=", "0:0", "0:0"], "{text}");
    // The guest's processor does not offer to run guests in turn.
    let nested = run(moat, &["--rm", "busybox", "grep", "-cwE", "vmx|svm", "/proc/cpuinfo"]);
    assert_eq!(nested.stdout.trim(), "0", "{nested:?}");
}

fn refusals(moat: &Moat) {
    let refused = |args: &[&str], why: &str| {
        let told = run(moat, &[args, &["busybox", "true"]].concat());
        assert!(told.code == 125 && told.stderr.contains(why), "{told:?}");
    };
    refused(&["-v", "/tmp:/data"], "can not share folders");
    refused(&["-v", "named:/data"], "can not share folders");
    refused(&["--pid", "host"], "--pid");
    refused(&["--device", "/dev/null:/dev/other"], "--device");
    assert_eq!(moat.call(&["ps", "-aq"]).success(), "");
}
