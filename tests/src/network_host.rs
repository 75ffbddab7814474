//! A host with Moat on it, and an outside.

use serde_json::Value;

use crate::Moat;
use crate::wire::{self, Place, Wire};

/// The built `moat` on a host of the test's own, behind a wire to the outside.
#[derive(Debug)]
pub struct NetworkHost {
    /// The program. Dropped first: what it removes is on the host.
    pub moat: Moat,
    wire: Wire,
}

impl Default for NetworkHost {
    fn default() -> Self {
        Self::new()
    }
}

impl NetworkHost {
    /// Makes the namespaces of this thread the host.
    pub fn new() -> Self {
        let wire = Wire::lay();
        Self { moat: Moat::new(), wire }
    }

    /// The outside.
    pub fn outside(&self) -> Place {
        self.wire.outside()
    }

    /// Calls `moat`, which must succeed; gives what it printed.
    #[track_caller]
    pub fn moat(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.moat.call(&args).success().trim().to_owned()
    }

    /// Calls `moat`, which must fail; gives what it said.
    #[track_caller]
    pub fn refused(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.moat.call(&args).failure().trim().to_owned()
    }

    /// Starts a workload that sleeps.
    #[track_caller]
    pub fn start(&self, name: &str, flags: &str) -> Place {
        self.moat(&format!("run -d --name {name} {flags} busybox sleep 100000"));
        self.place(name)
    }

    /// The network namespace of a workload that runs.
    #[track_caller]
    pub fn place(&self, name: &str) -> Place {
        Place::of_process(self.moat.inspect(name)["State"]["Pid"].as_u64().unwrap())
    }

    /// What `inspect` says of a workload on a network.
    #[track_caller]
    pub fn on(&self, name: &str, network: &str) -> Value {
        self.moat.inspect(name)["NetworkSettings"]["Networks"][network].clone()
    }

    /// Its address on a network.
    #[track_caller]
    pub fn ip(&self, name: &str, network: &str) -> String {
        self.on(name, network)["IPAddress"].as_str().unwrap().to_owned()
    }

    /// Its address of IPv6 on a network.
    #[track_caller]
    pub fn ip6(&self, name: &str, network: &str) -> String {
        self.on(name, network)["GlobalIPv6Address"].as_str().unwrap().to_owned()
    }

    /// What `system check` finds, a line each.
    pub fn findings(&self, repair: bool) -> Vec<String> {
        let mut args = vec!["system", "check", "--format", "json"];
        args.extend(repair.then_some("--repair"));
        let answer = self.moat.call(&args);
        let report: Value = serde_json::from_str(&answer.stdout).unwrap();
        let line = |one: &Value| format!("{} {}", one["Fault"], one["Repair"]);
        report["Findings"].as_array().unwrap().iter().map(line).collect()
    }

    /// No namespace, device, address, place or rule of any workload.
    #[track_caller]
    pub fn nothing_left(&self) {
        wire::nothing_left(&self.moat.root().join("run"));
    }
}
