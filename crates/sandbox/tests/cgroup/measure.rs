//! What making, joining and removing a group costs.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use moat_linux::process::{self, Clone3, Forked};
use moat_linux::shared::Counters;
use moat_sandbox::cgroup::{self, Layout};

use crate::limits::NULL_ONLY;
use crate::{Group, directories, plan};

/// Numbers for the module's header: making, joining and removing a group; joining is measured after some quiet.
pub(crate) fn measure(layout: &Layout, path: &str) {
    let micros = |began: Instant| began.elapsed().as_micros();
    for round in 0..5 {
        let began = Instant::now();
        let layout_again = cgroup::detect().expect("the host's layout");
        let detected = micros(began);
        drop(layout_again);
        let began = Instant::now();
        let (state, operations) = plan(layout, path, NULL_ONLY);
        let planned = micros(began);
        let group = Group { state };
        let began = Instant::now();
        let times: Vec<String> = operations
            .iter()
            .map(|operation| {
                let began = Instant::now();
                operation.apply().expect("a step");
                format!("{} {}", micros(began), operation)
            })
            .collect();
        let made = micros(began);
        std::thread::sleep(Duration::from_millis(100));
        let joined = Counters::new(1).expect("a shared page");
        let unified = group.state.open_unified().expect("the v2 group");
        let tasks = group.state.open_legacy().expect("the v1 groups");
        let began = Instant::now();
        let options = Clone3 { cgroup: unified.as_ref().map(AsFd::as_fd), ..Clone3::default() };
        let Forked::Parent(pid, _) = process::fork(options).expect("a child") else {
            let began = Instant::now();
            tasks.join().expect("join");
            joined.set(0, micros(began) as u64);
            std::process::exit(0)
        };
        let forked = micros(began);
        process::wait(pid, true).expect("wait");
        std::thread::sleep(Duration::from_millis(100));
        let waited = Counters::new(1).expect("a shared page");
        let Forked::Parent(pid, _) = process::fork(Clone3::default()).expect("a child") else {
            let began = Instant::now();
            for directory in directories(&group.state) {
                std::fs::write(directory.join("cgroup.procs"), std::process::id().to_string()).expect("join");
            }
            waited.set(0, micros(began) as u64);
            std::process::exit(0)
        };
        process::wait(pid, true).expect("wait");
        let began = Instant::now();
        group.state.remove().expect("remove");
        println!(
            "detect {detected} us, plan {planned}, make {made}, fork {forked}, tasks {}, cgroup.procs {}, remove {}",
            joined.get(0),
            waited.get(0),
            micros(began)
        );
        if round == 4 {
            println!("{}", times.join("\n"));
        }
    }
}
