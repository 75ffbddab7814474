//! From `start` to `rm`: what is done to workloads that exist.

use moat_tests::{Moat, wait_until};

#[test]
fn stop_asks_and_kill_does_not() {
    let moat = Moat::new();
    moat.start("polite", &[], "trap 'exit 5' TERM; while :; do sleep 0.1; done");
    wait_until(|| moat.call(&["exec", "polite", "true"]).code == 0);
    assert_eq!(moat.call(&["stop", "polite"]).success(), "polite\n");
    assert_eq!(moat.inspect("polite")["State"]["ExitCode"], 5);
    moat.call(&["start", "polite"]).success();
    assert_eq!(moat.call(&["kill", "polite"]).success(), "polite\n");
    assert_eq!(moat.call(&["wait", "polite"]).success(), "137\n");
    assert!(moat.call(&["kill", "--signal", "NOPE", "polite"]).failure().contains("NOPE"));
}

#[test]
fn restart_gives_a_new_process() {
    let moat = Moat::new();
    moat.start("again", &["--stop-timeout", "0"], "while :; do sleep 1; done");
    let before = moat.inspect("again")["State"]["Pid"].clone();
    moat.call(&["restart", "again"]).success();
    assert_eq!(moat.status("again"), "running");
    assert_ne!(moat.inspect("again")["State"]["Pid"], before);
}

#[test]
fn pause_and_unpause() {
    let moat = Moat::new();
    moat.start("frozen", &[], "while :; do sleep 1; done");
    moat.call(&["pause", "frozen"]).success();
    assert_eq!(moat.status("frozen"), "paused");
    assert!(moat.call(&["ps"]).success().contains("(Paused)"));
    assert_eq!(moat.call(&["exec", "frozen", "true"]).code, 125);
    moat.call(&["unpause", "frozen"]).success();
    assert_eq!(moat.status("frozen"), "running");
    assert!(moat.call(&["unpause", "frozen"]).failure().contains("running"));
}

#[test]
fn rename_and_names() {
    let moat = Moat::new();
    moat.start("one", &[], "while :; do sleep 1; done");
    moat.call(&["rename", "one", "two"]).success();
    assert_eq!(moat.status("two"), "running");
    assert_eq!(moat.inspect("two")["Name"], "/two");
    assert_eq!(moat.call(&["inspect", "one"]).code, 1);
    let taken = moat.run(&["--name", "two", "busybox", "true"]);
    assert_eq!(taken.code, 125);
    assert!(taken.stderr.contains("two"), "{taken:?}");
    moat.start("one", &[], "true");
}

#[test]
fn remove_needs_force_for_what_runs() {
    let moat = Moat::new();
    moat.start("busy", &[], "while :; do sleep 1; done");
    let refused = moat.call(&["rm", "busy", "nothing"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("busy") && refused.stderr.contains("nothing"), "{refused:?}");
    assert_eq!(moat.call(&["rm", "-f", "busy"]).success(), "busy\n");
    let gone = moat.call(&["rm", "-f", "busy"]);
    assert_eq!((gone.code, gone.stdout.as_str()), (0, ""));
}

#[test]
fn exec_runs_beside_the_program() {
    let moat = Moat::new();
    moat.start("host", &["-e", "A=1", "-w", "/etc"], "while :; do sleep 1; done");
    let done = moat.call(&["exec", "-e", "B=2", "host", "sh", "-c", "echo $A$B; pwd; exit 9"]);
    assert_eq!((done.code, &*done.stdout), (9, "12\n/etc\n"));
    let done = moat.call(&["exec", "-u", "web", "-w", "/tmp", "host", "sh", "-c", "id -u; pwd"]);
    assert_eq!(done.success(), "1000\n/tmp\n");
    let done = moat.call_with(&["exec", "-i", "host", "wc", "-c"], b"12345");
    assert_eq!(done.success().trim(), "5");
    assert_eq!(moat.call(&["exec", "host", "no-such-program"]).code, 127);
    assert_eq!(moat.call(&["exec", "host", "/etc/passwd"]).code, 126);
    assert_eq!(moat.call(&["exec", "nobody", "true"]).code, 125);
    moat.call(&["exec", "-d", "host", "touch", "/tmp/made"]).success();
    wait_until(|| moat.call(&["exec", "host", "test", "-e", "/tmp/made"]).code == 0);
}

#[test]
fn top_lists_processes() {
    let moat = Moat::new();
    moat.start("busy", &[], "sleep 1234 & sleep 5678");
    wait_until(|| moat.call(&["top", "busy"]).success().contains("sleep 5678"));
    let listed = moat.call(&["top", "busy"]);
    assert!(listed.success().starts_with("UID") && listed.stdout.contains("sleep 1234"), "{listed:?}");
    let listed = moat.call(&["top", "busy", "-o", "pid,comm"]);
    assert!(listed.success().starts_with("PID       COMMAND\n"), "{listed:?}");
    assert!(moat.call(&["top", "busy", "-Z"]).failure().contains("-Z"));
}

#[test]
fn stats_once() {
    let moat = Moat::new();
    moat.start("busy", &["-m", "64m"], "while :; do :; done");
    let table = moat.call(&["stats", "--no-stream"]);
    assert!(table.success().starts_with("CONTAINER ID   NAME"), "{table:?}");
    let line =
        moat.call(&["stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}} {{.MemUsage}}", "busy"]);
    let words: Vec<&str> = line.success().split_whitespace().collect();
    assert_eq!(words[0], "busy");
    let percent: f64 = words[1].trim_end_matches('%').parse().unwrap();
    assert!(percent > 1.0, "{line:?}");
    assert_eq!(words[4], "64MiB");
}

#[test]
fn update_changes_a_limit_that_holds() {
    let moat = Moat::new();
    moat.start("box", &["--memory", "64m"], "while :; do sleep 1; done");
    moat.call(&["update", "--memory", "32m", "--memory-swap", "32m", "--restart", "always", "box"]).success();
    let found = moat.inspect("box");
    assert_eq!(found["HostConfig"]["Memory"], 32 << 20);
    assert_eq!(found["HostConfig"]["RestartPolicy"]["Name"], "always");
    let line = moat.call(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "box"]);
    assert!(line.success().contains("/ 32MiB"), "{line:?}");
    let greedy = moat.call(&["exec", "box", "sh", "-c", "head -c 60000000 /dev/zero | tail | wc -c"]);
    assert_ne!(greedy.stdout.trim(), "60000000", "{greedy:?}");
    assert!(moat.call(&["update", "box"]).failure().contains("nothing is to be changed"));
    moat.call(&["update", "--restart", "no", "box"]).success();
}

#[test]
fn restart_policies_start_again() {
    let moat = Moat::new();
    moat.start("flaky", &["--restart", "on-failure:2"], "exit 3");
    wait_until(|| moat.status("flaky") == "exited");
    let state = moat.inspect("flaky");
    assert_eq!((&state["RestartCount"], &state["State"]["ExitCode"]), (&2.into(), &3.into()));
}

#[test]
fn health_is_told() {
    let moat = Moat::new();
    let flags = ["--health-cmd", "test -e /tmp/well", "--health-interval", "100ms", "--health-retries", "1"];
    moat.start("patient", &flags, "while :; do sleep 1; done");
    wait_until(|| moat.call(&["ps"]).success().contains("(unhealthy)"));
    moat.call(&["exec", "patient", "touch", "/tmp/well"]).success();
    wait_until(|| moat.call(&["ps", "--filter", "health=healthy", "-q"]).success() != "");
    assert_eq!(moat.inspect("patient")["State"]["Health"]["Status"], "healthy");
}

#[test]
fn ports_are_told() {
    let moat = Moat::new();
    moat.start("quiet", &[], "while :; do sleep 1; done");
    assert_eq!(moat.call(&["port", "quiet"]).success(), "");
    assert!(moat.call(&["port", "quiet", "80"]).failure().contains("80"));
}
