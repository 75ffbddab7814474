//! Health checks.

use moat_engine::{EventQuery, Health, StartOptions, Timestamp, Workload};
use moat_model::workload::{HealthProbe, HealthSpec, WorkloadSpec};

use crate::house::{House, wait_until};

fn health(probe: HealthProbe) -> HealthSpec {
    HealthSpec {
        probe,
        interval_ms: Some(50),
        timeout_ms: Some(400),
        start_period_ms: None,
        start_interval_ms: None,
        retries: Some(2),
    }
}

fn run(house: &House, script: &str, probe: HealthProbe) -> Workload {
    let spec = WorkloadSpec { health: Some(health(probe)), ..house.spec(&["sh", "-c", script]) };
    house.engine.run(spec, &StartOptions::default()).unwrap().0
}

fn is(workload: &Workload, status: Health) -> bool {
    workload.state().unwrap().health.unwrap().status == status
}

pub(crate) fn checks_by_a_program(house: &House) {
    let begin = Timestamp::now();
    let script = "touch /well; sleep 1000";
    let command = ["sh", "-c", "echo looked; test -e /well"].map(str::to_owned).to_vec();
    let workload = run(house, script, HealthProbe::Exec { command });
    wait_until(|| is(&workload, Health::Healthy));
    let root = format!("/proc/{}/root", workload.state().unwrap().process.pid);
    std::fs::remove_file(format!("{root}/well")).unwrap();
    wait_until(|| is(&workload, Health::Unhealthy));
    let state = workload.state().unwrap().health.unwrap();
    assert!(state.failing_streak >= 2 && state.log.len() <= 5);
    assert!(state.log.iter().any(|result| result.output == "looked\n"), "{state:?}");
    std::fs::write(format!("{root}/well"), "").unwrap();
    wait_until(|| is(&workload, Health::Healthy));
    let query = EventQuery { since: Some(begin), until: Some(Timestamp::now()) };
    let told: Vec<String> = house
        .engine
        .events(query)
        .unwrap()
        .map(Result::unwrap)
        .filter(|event| event.action.name() == "health_status")
        .map(|event| event.attributes["status"].clone())
        .collect();
    assert_eq!(told, ["healthy", "unhealthy", "healthy"]);

    // One that takes too long is ended, with its program.
    let slow = run(house, "sleep 1000", HealthProbe::Shell { line: "sleep 999".to_owned() });
    wait_until(|| is(&slow, Health::Unhealthy));
    let state = slow.state().unwrap().health.unwrap();
    assert!(state.log.iter().all(|result| result.exit_code == -1), "{state:?}");
    let checks =
        || slow.top().unwrap().iter().filter(|process| process.command.contains("sleep 999")).count();
    wait_until(|| checks() <= 1);
}

pub(crate) fn checks_by_a_connection(house: &House) {
    let tcp = run(house, "sleep 0.3; nc -l -p 81 & nc -ll -p 80 -e true", HealthProbe::Tcp { port: 80 });
    wait_until(|| is(&tcp, Health::Healthy));
    let closed = run(house, "sleep 1000", HealthProbe::Tcp { port: 80 });
    wait_until(|| is(&closed, Health::Unhealthy));
    let state = closed.state().unwrap().health.unwrap();
    assert!(state.log[0].output.contains("connect to port 80: ECONNREFUSED"), "{state:?}");

    let answer = |status: &str| {
        format!(
            "printf 'HTTP/1.1 {status}\\r\\nContent-Length: 0\\r\\n\\r\\n' > /answer; while true; do nc -l -p 80 < /answer > /asked; done"
        )
    };
    let http = HealthProbe::Http { port: 80, path: "/ready?x=1".to_owned() };
    let good = run(house, &answer("204 No Content"), http.clone());
    wait_until(|| is(&good, Health::Healthy));
    let asked = format!("/proc/{}/root/asked", good.state().unwrap().process.pid);
    wait_until(|| {
        std::fs::read_to_string(&asked)
            .unwrap()
            .starts_with("GET /ready?x=1 HTTP/1.1\r\nHost: localhost:80\r\n")
    });
    let bad = run(house, &answer("503 Service Unavailable"), http);
    wait_until(|| is(&bad, Health::Unhealthy));
    let state = bad.state().unwrap().health.unwrap();
    assert!(state.log.iter().any(|result| result.output.contains("status 503")), "{state:?}");
}
