//! `run` and `create`: flags reach the program, exit codes come back.

use moat_tests::Moat;

#[test]
fn output_and_exit_codes() {
    let moat = Moat::new();
    let done = moat.run(&["--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((done.code, &*done.stdout, &*done.stderr), (7, "out\n", "err\n"));
    assert_eq!(moat.run(&["--rm", "busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).code, 137);
    assert_eq!(moat.run(&["--rm", "busybox", "no-such-program"]).code, 127);
    assert_eq!(moat.run(&["--rm", "busybox", "/etc/passwd"]).code, 126);
    assert_eq!(moat.run(&["--rm", "--pull", "never", "no-such-image"]).code, 125);
    assert_eq!(moat.call(&["run", "--no-such-flag", "busybox"]).code, 125);
    assert_eq!(moat.call(&["ps", "-aq"]).success(), "", "--rm leaves nothing, also of what never ran");
}

#[test]
fn flags_after_the_image_belong_to_the_program() {
    let moat = Moat::new();
    let done = moat.run(&["--rm", "busybox", "echo", "-it", "--rm", "--", "-e", "--help"]);
    assert_eq!(done.success(), "-it --rm -- -e --help\n");
}

#[test]
fn flags_reach_the_program() {
    let moat = Moat::new();
    std::fs::write(moat.path("vars"), "# comment\nFROM_FILE=1\nBOTH=file\n").unwrap();
    let vars = moat.path("vars").display().to_string();
    let script = "echo $A $FROM_FILE $BOTH; pwd; id -u; id -G; hostname; cat /proc/sys/kernel/msgmax; ulimit -n; echo \"$@\"";
    let done = moat.run(&[
        "--rm",
        "-e",
        "A=a b",
        "-e",
        "BOTH=flag",
        "--env-file",
        &vars,
        "-w",
        "/etc",
        "-u",
        "web",
        "-h",
        "inner",
        "--sysctl",
        "kernel.msgmax=4242",
        "--ulimit",
        "nofile=77:77",
        "--entrypoint",
        "/bin/sh",
        "busybox",
        "-c",
        script,
        "name",
        "x",
        "y",
    ]);
    assert_eq!(done.success(), "a b 1 flag\n/etc\n1000\n1000 26\ninner\n4242\n77\nx y\n");
}

#[test]
fn a_flag_without_value_takes_one_after_an_equals_sign() {
    let moat = Moat::new();
    moat.run(&["--rm=false", "--name", "kept", "busybox", "true"]).success();
    assert_eq!(moat.status("kept"), "exited");
    assert_eq!(moat.call(&["run", "--rm=maybe", "busybox"]).code, 125);
}

#[test]
fn input_is_copied_to_the_end() {
    let moat = Moat::new();
    let input = vec![b'x'; 3 << 20];
    let done = moat.call_with(&["run", "--network", "none", "--rm", "-i", "busybox", "wc", "-c"], &input);
    assert_eq!(done.success().trim(), (3 << 20).to_string());
    let done = moat.call_with(&["run", "--network", "none", "--rm", "busybox", "wc", "-c"], b"not wanted");
    assert_eq!(done.success().trim(), "0", "without -i there is no input");
}

#[test]
fn walls_can_be_seen_from_inside() {
    let moat = Moat::new();
    let done = moat.run(&["--rm", "--read-only", "busybox", "touch", "/x"]);
    assert!(done.failure().contains("Read-only file system"), "{done:?}");
    let done = moat.run(&["--rm", "--cap-drop", "ALL", "busybox", "grep", "CapEff", "/proc/self/status"]);
    assert_eq!(done.success(), "CapEff:\t0000000000000000\n");
    let done =
        moat.run(&["--rm", "--tmpfs", "/scratch:size=1m", "busybox", "sh", "-c", "df -k /scratch | tail -1"]);
    assert!(done.success().contains("1024"), "{done:?}");
    let done =
        moat.run(&["--rm", "--init", "busybox", "sh", "-c", "echo $$; tr '\\0' ' ' < /proc/1/cmdline"]);
    assert!(!done.success().starts_with("1\n"), "{done:?}");
}

#[test]
fn create_makes_and_start_runs() {
    let moat = Moat::new();
    let id = moat.call(&["create", "--network", "none", "--name", "made", "busybox", "echo", "started"]);
    let id = id.success().trim().to_owned();
    assert_eq!(id.len(), 64);
    assert_eq!(moat.status("made"), "created");
    assert_eq!(moat.call(&["start", "--attach", "made"]).success(), "started\n");
    assert_eq!(moat.call(&["start", &id[..12]]).success().trim(), &id[..12]);
    moat.call(&["wait", "made"]).success();
    assert_eq!(moat.call(&["logs", "made"]).success(), "started\nstarted\n");
}

#[test]
fn the_id_goes_to_a_file() {
    let moat = Moat::new();
    let file = moat.path("id").display().to_string();
    let id = moat.run(&["-d", "--cidfile", &file, "busybox", "true"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), id.success().trim());
    let again = moat.run(&["-d", "--cidfile", &file, "busybox", "true"]);
    assert_eq!(again.code, 125);
    assert!(again.stderr.contains("there already"), "{again:?}");
}

#[test]
fn explain_prints_a_waterfall() {
    let moat = Moat::new();
    let done = moat.run(&["--rm", "--explain", "busybox", "true"]);
    done.success();
    assert!(done.stderr.contains("pivot_root"), "{}", done.stderr);
}

#[test]
fn hello_compares_both_sides() {
    let moat = Moat::new();
    let done = moat.run(&["--rm", "moat/hello"]);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let line =
        done.success().lines().find(|line| line.trim_start().starts_with("kernel ")).unwrap_or_default();
    assert_eq!(line.matches(kernel.trim()).count(), 2, "{done:?}");
    assert!(line.contains('='), "{line}");
    assert!(!done.stdout.contains("not known"), "{done:?}");
    let told = moat.run(&["--rm", "busybox", "env"]);
    assert!(!told.success().contains("MOAT_HELLO_HOST"), "{told:?}");
}

/// The plan names each step and what does the same by hand; nothing is made for it, and what a start would refuse is
/// refused.
#[test]
fn a_dry_run_makes_nothing() {
    let moat = Moat::new();
    let files = || {
        let listed = std::process::Command::new("find").arg(moat.root()).output().unwrap();
        let mut files: Vec<String> =
            String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
        files.sort();
        files
    };
    let before = files();
    let flags = ["--dry-run", "--name", "planned", "-v", "data:/data", "-m", "64m", "--hostname", "box"];
    let done = moat.run(&[&flags[..], &["busybox", "echo", "never"]].concat());
    let plan = done.success();
    for words in [
        "claim name planned",
        "make volume data",
        "mount the root file system of 1 layers",
        "mount -t overlay moat -o lowerdir=",
        "clone process, new namespaces",
        "pivot root",
        "install seccomp filter",
        "execute echo",
    ] {
        assert!(plan.contains(words), "{words}: {plan}");
    }
    assert_eq!(moat.call(&["create", "--dry-run", "--network", "none", "busybox", "true"]).code, 0);
    assert_eq!(files(), before);
    assert!(moat.run(&["--dry-run", "missing:1", "true"]).failure().contains("no such image: missing:1"));
    assert_eq!(moat.run(&["--dry-run", "--user", "nobody-here", "busybox", "true"]).code, 125);
}
