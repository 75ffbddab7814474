//! The routes: a request becomes a call of the monitor, its result an answer.

use moat_model::vmm::MachineSpec;
use serde_json::json;

use super::http::{Request, Response};
use crate::Error;
use crate::machine::Timeline;
use crate::monitor::Monitor;

/// A route: method, path, what it does.
type Handler = fn(&mut Monitor, &Request) -> crate::Result<Response>;

/// All routes; a test holds them against the description.
const ROUTES: &[(&str, &str, Handler)] = &[
    ("GET", "/machine", machine),
    ("PUT", "/machine", configure),
    ("POST", "/machine/start", start),
    ("POST", "/machine/pause", pause),
    ("POST", "/machine/resume", start),
    ("POST", "/machine/stop", stop),
    ("GET", "/exits", exits),
    ("GET", "/metrics", metrics),
    ("GET", "/vcpus", vcpus),
    ("GET", "/walk", walk),
    ("PUT", "/snapshot", snapshot),
    ("GET", "/openapi.json", openapi),
];

/// Answers a request.
pub(crate) fn answer(monitor: &mut Monitor, request: &Request) -> Response {
    let mut known = false;
    for (method, path, handler) in ROUTES {
        if *path == request.path {
            if *method == request.method {
                return handler(monitor, request).unwrap_or_else(|error| failed(&error));
            }
            known = true;
        }
    }
    let Request { method, path, .. } = request;
    if known {
        Response::failed(405, &format!("{path} knows no {method}"))
    } else {
        Response::failed(404, &format!("there is no {path}; GET /openapi.json lists what there is"))
    }
}

fn failed(error: &Error) -> Response {
    let hint = error.hint_text().map(|hint| format!(" ({hint})")).unwrap_or_default();
    Response::failed(400, &format!("{error}{hint}"))
}

fn machine(monitor: &mut Monitor, _request: &Request) -> crate::Result<Response> {
    let spec = monitor.machine.as_ref().map(crate::machine::Machine::spec);
    Ok(Response::json(&json!({ "phase": monitor.phase(), "spec": spec })))
}

fn configure(monitor: &mut Monitor, request: &Request) -> crate::Result<Response> {
    let spec: MachineSpec =
        serde_json::from_slice(&request.body).map_err(|error| Error::new(format!("the machine: {error}")))?;
    monitor.configure(spec, &mut Timeline::new())?;
    Ok(Response::done())
}

fn start(monitor: &mut Monitor, _request: &Request) -> crate::Result<Response> {
    monitor.resume()?;
    Ok(Response::done())
}

fn pause(monitor: &mut Monitor, _request: &Request) -> crate::Result<Response> {
    monitor.pause()?;
    Ok(Response::done())
}

fn stop(monitor: &mut Monitor, _request: &Request) -> crate::Result<Response> {
    monitor.stop();
    Ok(Response::done())
}

fn exits(monitor: &mut Monitor, request: &Request) -> crate::Result<Response> {
    let report = monitor.machine()?.exits()?;
    Ok(match request.parameter("format") {
        None | Some("json") => Response::json(&report),
        Some("table") => Response::text(&report.to_string()),
        Some(other) => Response::failed(400, &format!("format {other:?} is neither json nor table")),
    })
}

fn metrics(monitor: &mut Monitor, _request: &Request) -> crate::Result<Response> {
    let phase = monitor.phase();
    let machine = monitor.machine()?;
    let exits = machine.exits()?;
    Ok(Response::json(&json!({
        "phase": phase,
        "exits": exits.exits,
        "kvm": exits.kvm,
        "memory_bytes": machine.memory().size_bytes(),
        "driver_faults": monitor.faults(),
        "paths": machine.paths(),
    })))
}

fn vcpus(monitor: &mut Monitor, request: &Request) -> crate::Result<Response> {
    let dump = monitor.while_paused(crate::machine::Machine::dump)?;
    let text = || dump.iter().map(ToString::to_string).collect::<String>();
    Ok(match request.parameter("format") {
        None | Some("json") => Response::json(&dump),
        Some("text") => Response::text(&text()),
        Some(other) => Response::failed(400, &format!("format {other:?} is neither json nor text")),
    })
}

fn walk(monitor: &mut Monitor, request: &Request) -> crate::Result<Response> {
    let number = |name: &str, text: &str| {
        let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
        u64::from_str_radix(digits, radix)
            .map_err(|_| Error::new(format!("{name}={text}: {text:?} is no number, such as 0x1000")))
    };
    let address = request.parameter("address").ok_or_else(|| Error::new("a walk needs an address"))?;
    let address = number("address", address)?;
    let vcpu = number("vcpu", request.parameter("vcpu").unwrap_or("0"))?;
    let walk = monitor.walk(vcpu, address)?;
    Ok(match request.parameter("format") {
        None | Some("json") => Response::json(&walk),
        Some("table") => Response::text(&walk.to_string()),
        Some(other) => Response::failed(400, &format!("format {other:?} is neither json nor table")),
    })
}

/// The body of `PUT /snapshot`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotBody {
    name: String,
}

fn snapshot(monitor: &mut Monitor, request: &Request) -> crate::Result<Response> {
    let body: SnapshotBody = serde_json::from_slice(&request.body)
        .map_err(|error| Error::new(format!("the snapshot: {error}")))?;
    monitor.snapshot(&body.name)?;
    Ok(Response::done())
}

fn openapi(_monitor: &mut Monitor, _request: &Request) -> crate::Result<Response> {
    Ok(Response { status: 200, content_type: "application/json", body: super::OPENAPI.as_bytes().to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_lists_exactly_the_routes() {
        let description: serde_json::Value = serde_json::from_str(crate::control::OPENAPI).unwrap();
        let mut described = Vec::new();
        for (path, methods) in description["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                described.push((method.to_uppercase(), path.clone()));
            }
        }
        described.sort();
        let mut routes: Vec<(String, String)> =
            ROUTES.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
        routes.sort();
        assert_eq!(described, routes);
    }
}
