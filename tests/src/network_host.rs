//! A host with Moat on it.

use moat_tests::{Moat, Place, Wire};
use serde_json::Value;

pub(crate) struct Host {
    // Dropped first: what it removes is on the host.
    pub(crate) moat: Moat,
    wire: Wire,
}

impl Host {
    /// Makes the namespaces of this thread the host.
    pub(crate) fn new() -> Self {
        let wire = Wire::lay();
        Self { moat: Moat::new(), wire }
    }

    pub(crate) fn outside(&self) -> Place {
        self.wire.outside()
    }

    /// Calls `moat`, which must succeed; gives what it printed.
    #[track_caller]
    pub(crate) fn moat(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.moat.call(&args).success().trim().to_owned()
    }

    /// Calls `moat`, which must fail; gives what it said.
    #[track_caller]
    pub(crate) fn refused(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.moat.call(&args).failure().trim().to_owned()
    }

    /// Starts a workload that sleeps.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, flags: &str) -> Place {
        self.moat(&format!("run -d --name {name} {flags} busybox sleep 100000"));
        self.place(name)
    }

    /// The network namespace of a workload that runs.
    #[track_caller]
    pub(crate) fn place(&self, name: &str) -> Place {
        Place::of_process(self.moat.inspect(name)["State"]["Pid"].as_u64().unwrap())
    }

    /// What `inspect` says of a workload on a network.
    #[track_caller]
    pub(crate) fn on(&self, name: &str, network: &str) -> Value {
        self.moat.inspect(name)["NetworkSettings"]["Networks"][network].clone()
    }

    #[track_caller]
    pub(crate) fn ip(&self, name: &str, network: &str) -> String {
        self.on(name, network)["IPAddress"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn ip6(&self, name: &str, network: &str) -> String {
        self.on(name, network)["GlobalIPv6Address"].as_str().unwrap().to_owned()
    }

    /// What `system check` finds, a line each.
    pub(crate) fn findings(&self, repair: bool) -> Vec<String> {
        let mut args = vec!["system", "check", "--format", "json"];
        args.extend(repair.then_some("--repair"));
        let answer = self.moat.call(&args);
        let report: Value = serde_json::from_str(&answer.stdout).unwrap();
        let line = |one: &Value| format!("{} {}", one["Fault"], one["Repair"]);
        report["Findings"].as_array().unwrap().iter().map(line).collect()
    }
}
