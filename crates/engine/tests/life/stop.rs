//! Ending workloads, and what a monitor or a starter that was killed leaves.

use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

use moat_engine::{ErrorKind, EventQuery, RemoveOptions, StartOptions, StopOptions, Timestamp};
use moat_linux::process as sys;
use moat_model::workload::{Status, WorkloadSpec};

use crate::house::{House, names, wait_until};

const FOREVER: [&str; 3] = ["sh", "-c", "trap 'exit 9' TERM; echo set; while true; do sleep 0.01; done"];

pub(crate) fn stop_and_kill(house: &House) {
    let polite = house.detached(&FOREVER);
    // A signal that comes before the shell has set its trap would end nothing: PID 1 ignores it.
    wait_until(|| polite.logs(moat_engine::LogQuery::default()).unwrap().count() > 0);
    polite.stop(&StopOptions::default()).unwrap();
    let state = polite.state().unwrap();
    assert_eq!((state.status, state.exit.unwrap().code), (Status::Exited, 9));
    // Once more is fine.
    polite.stop(&StopOptions::default()).unwrap();

    let deaf = house.detached(&["sleep", "1000"]);
    let begin = Instant::now();
    deaf.stop(&StopOptions { signal: None, timeout_ms: Some(Some(300)) }).unwrap();
    assert!(begin.elapsed().as_millis() >= 300);
    assert_eq!(deaf.state().unwrap().exit.unwrap().code, 137);

    let signalled = house.detached(&["sh", "-c", "trap 'echo usr1' USR1; while true; do sleep 0.01; done"]);
    wait_until(|| {
        signalled.kill(10).unwrap();
        signalled.logs(moat_engine::LogQuery::default()).unwrap().count() > 0
    });
    assert_eq!(signalled.state().unwrap().status, Status::Running);
    signalled.kill(9).unwrap();
    assert_eq!(signalled.wait().unwrap().code, 137);
    assert_eq!(signalled.kill(9).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(signalled.kill(65).unwrap_err().kind(), ErrorKind::Invalid);
}

pub(crate) fn pause(house: &House) {
    let workload = house.detached(&["sh", "-c", "i=0; while true; do i=$((i+1)); echo $i; sleep 0.01; done"]);
    let lines = || workload.logs(moat_engine::LogQuery::default()).unwrap().count();
    wait_until(|| lines() > 3);
    workload.pause().unwrap();
    assert_eq!(workload.state().unwrap().status, Status::Paused);
    assert_eq!(workload.pause().unwrap_err().kind(), ErrorKind::Conflict);
    let before = lines();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(lines() <= before + 1);
    workload.unpause().unwrap();
    wait_until(|| lines() > before + 3);
    assert_eq!(workload.unpause().unwrap_err().kind(), ErrorKind::Conflict);
    // A frozen workload can be stopped.
    workload.pause().unwrap();
    workload.stop(&StopOptions { signal: None, timeout_ms: Some(Some(50)) }).unwrap();
    assert_eq!(workload.state().unwrap().status, Status::Exited);
}

pub(crate) fn restart_and_rename(house: &House) {
    let mut workload = house.detached(&FOREVER);
    let first = workload.state().unwrap().process.pid;
    workload.restart(&StopOptions::default()).unwrap();
    let second = workload.state().unwrap();
    assert!(second.status == Status::Running && second.process.pid != first);
    // Auto-remove waits for the end that nobody follows up.
    let spec = WorkloadSpec { auto_remove: true, ..house.spec(&FOREVER) };
    let removed = house.engine.run(spec, &StartOptions::default()).unwrap().0;
    removed.restart(&StopOptions::default()).unwrap();
    removed.stop(&StopOptions::default()).unwrap();
    assert!(removed.is_gone());

    let old = workload.name().to_owned();
    workload.rename("new-name").unwrap();
    assert_eq!(house.engine.find("new-name").unwrap().id(), workload.id());
    assert_eq!(house.engine.find(&old).unwrap_err().kind(), ErrorKind::NotFound);
    let other = WorkloadSpec { name: Some(old.clone()), ..house.spec(&["true"]) };
    house.engine.create(other).unwrap();
    assert_eq!(workload.rename(&old).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(house.check(false), Vec::<String>::new());
}

pub(crate) fn remove(house: &House) {
    let workload = house.detached(&FOREVER);
    let refused = workload.remove(&RemoveOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().ends_with("can not be removed: it is running"), "{refused}");
    workload.remove(&RemoveOptions { force: true, volumes: false }).unwrap();
    assert!(workload.is_gone());
    assert_eq!(house.engine.find(workload.name()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(house.leftovers(), Vec::<String>::new());
    // With auto-remove two remove at once: both succeed.
    let spec = WorkloadSpec { auto_remove: true, ..house.spec(&FOREVER) };
    let removed = house.engine.run(spec, &StartOptions::default()).unwrap().0;
    removed.remove(&RemoveOptions { force: true, volumes: false }).unwrap();
    assert!(removed.is_gone());
    assert_eq!(removed.wait_removed().unwrap().code, 0);
}

pub(crate) fn a_killed_monitor_is_told_and_mended(house: &House) {
    let begin = Timestamp::now();
    let workload = house.detached(&["sleep", "1000"]);
    let state = workload.state().unwrap();
    sys::kill(state.monitor.pid, 9).unwrap();
    wait_until(|| !state.monitor.is_alive());
    let told = workload.state().unwrap();
    assert_eq!(told.status, Status::Running);
    assert!(told.trouble.unwrap().contains("was killed"));
    let attach =
        workload.attach(&moat_engine::AttachSpec { stdout: true, ..Default::default() }).unwrap_err();
    assert!(attach.to_string().contains("its monitor was killed"), "{attach}");
    let found = house.check(false);
    assert!(found.iter().any(|line| line.contains("was killed; its program runs without it")), "{found:?}");

    // It can be stopped all the same, and started again.
    workload.stop(&StopOptions { signal: None, timeout_ms: Some(Some(10)) }).unwrap();
    let ended = workload.state().unwrap();
    assert_eq!((ended.status, ended.exit.as_ref().unwrap().code), (Status::Exited, 255));
    assert!(ended.exit.unwrap().error.unwrap().contains("nobody saw"));
    assert_eq!(house.check(false), Vec::<String>::new());
    workload.start(&StartOptions::default()).unwrap();

    // Killed again: a check mends it.
    let state = workload.state().unwrap();
    sys::kill(state.monitor.pid, 9).unwrap();
    wait_until(|| !state.monitor.is_alive());
    assert!(!house.check(true).is_empty());
    assert_eq!(house.check(false), Vec::<String>::new());
    assert!(!state.process.is_alive());
    assert_eq!(workload.state().unwrap().status, Status::Exited);

    // Both killed: how it ended is not known, and told so at once.
    workload.start(&StartOptions::default()).unwrap();
    let state = workload.state().unwrap();
    sys::kill(state.monitor.pid, 9).unwrap();
    sys::kill(state.process.pid, 9).unwrap();
    wait_until(|| !state.monitor.is_alive() && !state.process.is_alive());
    assert_eq!(workload.state().unwrap().status, Status::Exited);
    assert_eq!(workload.wait().unwrap().code, 255);
    workload.remove(&RemoveOptions::default()).unwrap_err();
    workload.remove(&RemoveOptions { force: true, volumes: false }).unwrap();
    let query = EventQuery { since: Some(begin), until: Some(Timestamp::now()) };
    let deaths =
        house.engine.events(query).unwrap().filter(|event| event.as_ref().unwrap().action.name() == "die");
    assert_eq!(deaths.count(), 3);
}

pub(crate) fn a_killed_starter_harms_nothing(house: &House) {
    let mut starter = house.actor("run", &["sh", "-c", "sleep 1000"]);
    let mut starter = starter.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let running = || {
        let all = house.engine.list().unwrap();
        all.into_iter().find(|one| one.state().is_ok_and(|state| state.status == Status::Running))
    };
    wait_until(|| running().is_some());
    let workload = running().unwrap();
    starter.kill().unwrap();
    assert_eq!(starter.wait().unwrap().signal(), Some(9));
    std::thread::sleep(std::time::Duration::from_millis(100));
    let state = workload.state().unwrap();
    assert_eq!((state.status, state.trouble), (Status::Running, None));
    workload.stop(&StopOptions { signal: Some(9), timeout_ms: None }).unwrap();
    assert!(workload.is_gone());
    assert_eq!(names(&house.path().join("removing")), Vec::<String>::new());
}
