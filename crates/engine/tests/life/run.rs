//! Running workloads to their end.

use moat_engine::{ErrorKind, EventQuery, Health, LogQuery, StartOptions, Timestamp};
use moat_model::workload::{LogSpec, RestartPolicy, Status, WorkloadSpec};

use crate::house::{Heard, House, IMAGE, folder, hear, names, wait_until};

pub(crate) fn a_run_leaves_nothing_with_auto_remove(house: &House) {
    let spec =
        WorkloadSpec { auto_remove: true, ..house.spec(&["sh", "-c", "echo out; echo err >&2; exit 3"]) };
    let heard = house.run(spec);
    assert_eq!((heard.stdout.as_str(), heard.stderr.as_str(), heard.exit.code), ("out\n", "err\n", 3));
    assert!(house.engine.list().unwrap().is_empty());
    assert_eq!(house.leftovers(), Vec::<String>::new());
    assert_eq!(house.check(false), Vec::<String>::new());
    // Each root is closed to others, and the run has left no control group.
    use std::os::unix::fs::PermissionsExt;
    for root in [house.path().to_owned(), house.path().join("run"), house.path().join("workloads")] {
        assert_eq!(
            std::fs::metadata(&root).unwrap().permissions().mode() & 0o777,
            0o700,
            "{}",
            root.display()
        );
    }
}

pub(crate) fn exit_codes(house: &House) {
    let code = |command: &[&str]| house.run(house.spec(command)).exit.code;
    assert_eq!(code(&["true"]), 0);
    assert_eq!(code(&["sh", "-c", "exit 77"]), 77);

    let fails =
        |command: &[&str]| house.engine.run(house.spec(command), &StartOptions::default()).unwrap_err();
    let missing = fails(&["no-such-program"]);
    assert_eq!(missing.kind(), ErrorKind::ProgramNotFound, "{missing}");
    assert!(missing.to_string().contains("executable file not found in $PATH"), "{missing}");
    assert_eq!(fails(&["/etc"]).kind(), ErrorKind::NotExecutable);
    assert_eq!(fails(&["/etc/passwd"]).kind(), ErrorKind::NotExecutable);
    let created: Vec<_> = house.engine.list().unwrap();
    let failed: Vec<_> =
        created.iter().filter(|one| one.state().unwrap().status == Status::Created).collect();
    assert_eq!(failed.len(), 3);
    let mut codes: Vec<i32> = failed.iter().map(|one| one.state().unwrap().exit.unwrap().code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [126, 126, 127]);
    // With auto-remove nothing is left of it.
    let spec =
        WorkloadSpec { auto_remove: true, name: Some("gone".to_owned()), ..house.spec(&["no-such-program"]) };
    house.engine.run(spec, &StartOptions::default()).unwrap_err();
    assert_eq!(house.engine.find("gone").unwrap_err().kind(), ErrorKind::NotFound);
}

pub(crate) fn output_is_kept_in_the_log(house: &House) {
    let script = "echo one; echo two >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; echo three";
    let (workload, mut started) = house.start(house.spec(&["sh", "-c", script]));
    let heard = hear(started.attached.as_mut().unwrap());
    let lines: Vec<_> = workload.logs(LogQuery::default()).unwrap().map(Result::unwrap).collect();
    let of = |stream| {
        let texts = lines.iter().filter(|line| line.stream == stream).map(|line| line.text.clone());
        String::from_utf8(texts.collect::<Vec<_>>().concat()).unwrap()
    };
    assert_eq!(of(moat_engine::Stream::Stdout), heard.stdout);
    assert_eq!(of(moat_engine::Stream::Stderr), "two\n");
    let longest = lines.iter().map(|line| line.text.len()).max().unwrap();
    assert_eq!(longest, 16 << 10);

    // A log of 20 kB keeps the end of more than a megabyte.
    let log = LogSpec { keep: true, max_bytes: 10_000, max_files: 2 };
    let spec = WorkloadSpec { log, ..house.spec(&["sh", "-c", "yes 0123456789 | head -n 100000; echo end"]) };
    let (workload, mut started) = house.start(spec);
    assert_eq!(hear(started.attached.as_mut().unwrap()).stdout.len(), 100_000 * 11 + 4);
    let path = folder(house, &workload).join("log");
    let bytes: u64 = names(&path).iter().map(|name| std::fs::metadata(path.join(name)).unwrap().len()).sum();
    assert!((10_000..=20_000).contains(&bytes), "{bytes}");
    let last =
        workload.logs(LogQuery { tail: Some(1), ..LogQuery::default() }).unwrap().last().unwrap().unwrap();
    assert_eq!(last.text, b"end\n");

    let log = LogSpec { keep: false, ..LogSpec::default() };
    let (workload, mut started) = house.start(WorkloadSpec { log, ..house.spec(&["echo", "x"]) });
    assert_eq!(hear(started.attached.as_mut().unwrap()).stdout, "x\n");
    assert!(!folder(house, &workload).join("log").exists());
}

pub(crate) fn a_terminal(house: &House) {
    let script = "stty size; test -t 0 && test -t 2 && echo terminal >&2; cat";
    let spec = WorkloadSpec { tty: true, open_stdin: true, ..house.spec(&["sh", "-c", script]) };
    let workload = house.engine.create(spec).unwrap();
    let attach = Some(moat_engine::AttachSpec { stdin: true, stdout: true, stderr: true });
    let started = workload.start(&StartOptions { attach, explain: false }).unwrap();
    let mut attached = started.attached.unwrap();
    attached.resize(33, 101).unwrap();
    attached.send_input(b"typed\n\x04").unwrap();
    let heard = hear(&mut attached);
    assert_eq!(heard.exit.code, 0);
    assert!(heard.stdout.contains("terminal\r\n"), "{heard:?}");
    // The echo of what was typed, and what `cat` made of it.
    assert_eq!(heard.stdout.matches("typed\r\n").count(), 2, "{heard:?}");
    assert_eq!(heard.stderr, "");
}

pub(crate) fn names_and_prefixes(house: &House) {
    let named = |name: &str| WorkloadSpec { name: Some(name.to_owned()), ..house.spec(&["true"]) };
    let first = house.engine.create(named("first")).unwrap();
    let again = house.engine.create(named("first")).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    assert!(again.to_string().contains("is in use by workload"), "{again}");
    assert_eq!(house.engine.create(named("no name")).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(house.engine.list().unwrap().len(), 1);
    for text in ["first", "/first", first.id().as_str(), first.id().short()] {
        assert_eq!(house.engine.find(text).unwrap().id(), first.id());
    }
    for text in ["none", "", "..", "0123456789abcdef0"] {
        assert_eq!(house.engine.find(text).unwrap_err().kind(), ErrorKind::NotFound, "{text:?}");
    }
    let made_up = house.engine.create(house.spec(&["true"])).unwrap();
    assert!(made_up.name().contains('_'));
    let missing = WorkloadSpec { image: "none:such".to_owned(), ..house.spec(&["true"]) };
    assert_eq!(house.engine.create(missing).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(house.engine.list().unwrap().len(), 2);
}

pub(crate) fn an_ended_workload_starts_again(house: &House) {
    let script = "cat /kept 2>/dev/null; echo again > /kept";
    let workload = house.engine.create(house.spec(&["sh", "-c", script])).unwrap();
    assert_eq!(workload.state().unwrap().status, Status::Created);
    let attach = Some(moat_engine::AttachSpec { stdin: false, stdout: true, stderr: true });
    let run = || -> Heard {
        let started = workload.start(&StartOptions { attach, explain: false }).unwrap();
        hear(&mut started.attached.unwrap())
    };
    assert_eq!(run().stdout, "");
    wait_until(|| workload.state().unwrap().status == Status::Exited);
    assert_eq!(run().stdout, "again\n");
    let state = workload.state().unwrap();
    assert!(state.started.unwrap() < state.finished.unwrap());
    assert_eq!(state.exit.unwrap().code, 0);
}

pub(crate) fn restart_policies(house: &House) {
    let policy = |restart, script: &str| WorkloadSpec { restart, ..house.spec(&["sh", "-c", script]) };
    let on_failure = RestartPolicy::OnFailure { max_retries: 2 };
    let workload =
        house.engine.run(policy(on_failure, "echo x; exit 5"), &StartOptions::default()).unwrap().0;
    wait_until(|| workload.state().unwrap().status == Status::Exited);
    let state = workload.state().unwrap();
    assert_eq!((state.restart_count, state.exit.unwrap().code), (2, 5));
    assert_eq!(workload.logs(LogQuery::default()).unwrap().count(), 3);

    let good = house.engine.run(policy(on_failure, "true"), &StartOptions::default()).unwrap().0;
    wait_until(|| good.state().unwrap().status == Status::Exited);
    assert_eq!(good.state().unwrap().restart_count, 0);

    let always =
        house.engine.run(policy(RestartPolicy::Always, "exit 0"), &StartOptions::default()).unwrap().0;
    wait_until(|| always.state().unwrap().restart_count >= 2);
    always.stop(&moat_engine::StopOptions::default()).unwrap();
    wait_until(|| always.state().unwrap().status == Status::Exited);
    let state = always.state().unwrap();
    assert!(state.stopped_by_user && !state.monitor_expected());
}

pub(crate) fn memory_that_runs_out_is_told(house: &House) {
    let mut spec = house.spec(&["sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=64; dd if=/dev/zero bs=48M count=1 | tail -c 48000000 > /dev/null"]);
    spec.limits.memory_bytes = Some(16 << 20);
    let (workload, mut started) = house.start(spec);
    let heard = hear(started.attached.as_mut().unwrap());
    assert!(heard.exit.oom_killed, "{heard:?}");
    let state = workload.state().unwrap();
    assert!(state.exit.unwrap().oom_killed);
    assert!(state.oom_victims.iter().all(|victim| victim.limit_of.contains(workload.id().as_str())));
    assert!(!state.oom_victims.is_empty());
}

pub(crate) fn events_tell_the_life(house: &House) {
    let begin = Timestamp::now();
    let mut spec = WorkloadSpec { auto_remove: true, ..house.spec(&["sh", "-c", "exit 4"]) };
    spec.labels.insert("a".to_owned(), "b".to_owned());
    house.run(spec);
    let query = EventQuery { since: Some(begin), until: Some(Timestamp::now()) };
    let events: Vec<_> = house.engine.events(query).unwrap().map(Result::unwrap).collect();
    let actions: Vec<&str> = events.iter().map(|event| event.action.name()).collect();
    assert_eq!(actions, ["create", "start", "die", "destroy"]);
    for event in &events {
        assert_eq!(event.attributes["image"], IMAGE);
        assert_eq!(event.attributes["a"], "b");
    }
    assert_eq!(events[2].attributes["exitCode"], "4");
}

pub(crate) fn a_monitor_is_small(house: &House) {
    let workload = house.detached(&["sh", "-c", "while true; do echo 0123456789; sleep 0.01; done"]);
    wait_until(|| workload.logs(LogQuery::default()).unwrap().count() > 50);
    let state = workload.state().unwrap();
    assert_eq!(state.health.map(|health| health.status), None::<Health>);
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", state.monitor.pid)).unwrap();
    let kib = |key: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse().unwrap()
    };
    // What is clean is the program's file: other monitors and the command line share it.
    let private = kib("Private_Dirty");
    assert!(private <= 1536, "{private} KiB");
    let name = std::fs::read_to_string(format!("/proc/{}/comm", state.monitor.pid)).unwrap();
    assert_eq!(name, "moat-monitor\n");
}

pub(crate) fn two_hundred_layers(house: &House) {
    let base = house.path().join("rootfs");
    let mut image = house.engine.images().find(IMAGE).unwrap();
    for number in 0..200 {
        let layer = house.path().join("layer");
        std::fs::create_dir_all(layer.join("layers")).unwrap();
        std::fs::write(layer.join(format!("layers/{number}")), number.to_string()).unwrap();
        std::fs::write(layer.join("top"), number.to_string()).unwrap();
        let name = (number == 199).then(|| moat_engine::image::Reference::parse("deep").unwrap());
        let spec = moat_engine::image::CommitSpec { name, ..Default::default() };
        image = moat_engine::image::commit(
            house.engine.images(),
            &image,
            &layer,
            &|_| false,
            spec,
            &moat_engine::image::silent,
        )
        .unwrap();
        std::fs::remove_dir_all(&layer).unwrap();
    }
    assert!(base.exists());
    let spec = WorkloadSpec {
        image: "deep".to_owned(),
        auto_remove: true,
        ..house.spec(&["sh", "-c", "cat /top /layers/0 /layers/150; echo; ls /layers | tail -n 300 | cat | tr '\\n' ' '; echo w > /layers/0; cat /layers/0"])
    };
    let heard = house.run(spec);
    assert!(heard.stdout.starts_with("1990150\n"), "{heard:?}");
    assert!(heard.stdout.ends_with("w\n"), "{heard:?}");
    let listed = heard.stdout.lines().nth(1).unwrap();
    assert_eq!(listed.split(' ').filter(|word| !word.is_empty() && *word != "w").count(), 200);
    house.engine.images().remove("deep", false).unwrap();
}
