//! Further processes, and what is counted.

use moat_engine::{ErrorKind, ExecSpec};
use moat_linux::process::{self as sys, Clone3, Forked};

use crate::house::{House, wait_until};

/// Runs a further process in a child of this one, since who has built one is changed for good. Gives its exit code, or
/// 200 and more for an error of that kind.
fn exec(house: &House, workload: &str, spec: &ExecSpec) -> i32 {
    match sys::fork(Clone3::default()).unwrap() {
        Forked::Child => {
            let process = house.engine.find(workload).and_then(|workload| workload.exec(spec));
            let code = match process.and_then(moat_engine::ExecProcess::wait) {
                Ok(code) => code,
                Err(error) => match error.kind() {
                    ErrorKind::ProgramNotFound => 201,
                    ErrorKind::NotExecutable => 202,
                    ErrorKind::Conflict => 203,
                    _ => 200,
                },
            };
            std::process::exit(code)
        }
        Forked::Parent(pid, _) => sys::exit_code(sys::wait(pid, true).unwrap().unwrap()),
    }
}

fn command(words: &[&str]) -> ExecSpec {
    ExecSpec { command: words.iter().map(|word| (*word).to_owned()).collect(), ..ExecSpec::default() }
}

pub(crate) fn a_further_process(house: &House) {
    let mut spec = house.spec(&["sleep", "1000"]);
    spec.env.push("A=workload".to_owned());
    let workload = house.engine.run(spec, &moat_engine::StartOptions::default()).unwrap().0;
    let name = workload.name();
    let run = |spec: ExecSpec| exec(house, name, &spec);
    assert_eq!(run(command(&["true"])), 0);
    assert_eq!(run(command(&["sh", "-c", "exit 42"])), 42);
    assert_eq!(run(command(&["sh", "-c", "test $A = workload && echo x > /written"])), 0);
    assert_eq!(run(command(&["test", "-s", "/written"])), 0);
    let env = vec!["A=exec".to_owned()];
    assert_eq!(run(ExecSpec { env, ..command(&["sh", "-c", "test $A = exec"]) }), 0);
    let user = Some("user".to_owned());
    assert_eq!(
        run(ExecSpec { user, ..command(&["sh", "-c", "test $(id -u) = 1000 && test $HOME = /tmp"]) }),
        0
    );
    assert_eq!(run(ExecSpec { user: Some("nobody-here".to_owned()), ..command(&["true"]) }), 200);
    let workdir = Some("/tmp".to_owned());
    assert_eq!(run(ExecSpec { workdir, ..command(&["sh", "-c", "test $PWD = /tmp"]) }), 0);
    assert_eq!(run(command(&["no-such-program"])), 201);
    assert_eq!(run(command(&["/etc"])), 202);
    // Nothing of the host's can be read from standard input.
    assert_eq!(run(command(&["sh", "-c", "test -z \"$(cat)\""])), 0);
    assert_eq!(
        run(ExecSpec {
            tty: true,
            size: Some((7, 9)),
            ..command(&["sh", "-c", "test \"$(stty size)\" = '7 9'"])
        }),
        0
    );

    workload.pause().unwrap();
    assert_eq!(run(command(&["true"])), 203);
    workload.unpause().unwrap();
    workload.kill(9).unwrap();
    workload.wait().unwrap();
    assert_eq!(run(command(&["true"])), 203);
}

pub(crate) fn stats_and_top(house: &House) {
    let workload = house.detached(&["sh", "-c", "sleep 1000 & while true; do true; done"]);
    wait_until(|| workload.stats().unwrap().usage.cpu.usage.total > 50_000_000);
    let stats = workload.stats().unwrap();
    assert!(stats.usage.memory.usage.usage > 0 && stats.host_memory_bytes > 1 << 20);
    assert_eq!(stats.usage.pids.current, 2);
    assert!(stats.processors >= 1 && stats.interfaces.is_empty());
    let processes = workload.top().unwrap();
    assert_eq!(processes.len(), 2);
    let first =
        processes.iter().find(|process| process.pid == workload.state().unwrap().process.pid).unwrap();
    assert!(first.command.starts_with("sh -c sleep") && first.cpu_ms >= 40 && first.user == 0);
    let second = processes.iter().find(|process| process.command == "sleep 1000").unwrap();
    assert_eq!(second.parent, first.pid);
    workload.kill(9).unwrap();
    workload.wait().unwrap();
    assert_eq!(workload.top().unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(workload.stats().unwrap_err().kind(), ErrorKind::Conflict);
}
