//! `moat events`.

use clap::Args;
use moat_engine::{Event, EventQuery, EventType};
use serde_json::{Value, json};

use super::logs::time;
use crate::failure::{Failure, Result};
use crate::filter::Filters;
use crate::format::template::Template;
use crate::line::Verb;
use crate::session::{Session, print};

#[derive(Args, Debug)]
pub(crate) struct Events {
    /// Only what fits, as in event=die
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Form of a line: json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// From that time on, as 2026-01-02T15:04:05Z or how long ago, as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Until that time; without it until it is interrupted
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

/// The form of a line.
enum Form {
    Text,
    Json,
    Template(Template),
}

impl Verb for Events {
    const NAME: &'static str = "events";
    const ABOUT: &'static str = "Print what happens as it happens";

    fn run(self, session: &Session) -> Result<u8> {
        let form = match self.format.as_deref() {
            None | Some("") => Form::Text,
            Some("json") => Form::Json,
            Some(text) => Form::Template(
                Template::parse(text).map_err(|error| Failure::new(format!("--format: {error}")))?,
            ),
        };
        let known = ["container", "event", "image", "label", "type", "volume", "network"];
        let filters = Filters::parse(&self.filter, &known)?;
        let query = EventQuery {
            since: time("--since", self.since.as_deref())?,
            until: time("--until", self.until.as_deref())?,
        };
        for event in session.engine()?.events(query)? {
            let event = event?;
            if fits(&filters, &event) {
                print(&(line(&form, &event)? + "\n"))?;
            }
        }
        Ok(0)
    }
}

fn fits(filters: &Filters, event: &Event) -> bool {
    let is = |kind: EventType, wanted: &str| {
        let name = event.attributes.get("name").map(String::as_str);
        event.kind == kind && (event.id.starts_with(wanted) || name == Some(wanted))
    };
    let of_image = |wanted: &str| {
        is(EventType::Image, wanted) || event.attributes.get("image").is_some_and(|image| image == wanted)
    };
    filters.any("event", |wanted| wanted == event.action.name())
        && filters.any("type", |wanted| wanted == event.kind.name())
        && filters.any("container", |wanted| is(EventType::Container, wanted))
        && filters.any("volume", |wanted| is(EventType::Volume, wanted))
        && filters.any("network", |wanted| is(EventType::Network, wanted))
        && filters.any("image", of_image)
        && filters.labels(&event.attributes)
}

fn line(form: &Form, event: &Event) -> Result<String> {
    match form {
        Form::Text => {
            let attributes: Vec<String> =
                event.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let (kind, action) = (event.kind.name(), event.action.name());
            Ok(format!("{} {kind} {action} {} ({})", event.time, event.id, attributes.join(", ")))
        }
        Form::Json => Ok(document(event).to_string()),
        Form::Template(template) => {
            template.render(&document(event)).map_err(|error| Failure::new(format!("--format: {error}")))
        }
    }
}

fn document(event: &Event) -> Value {
    let mut attributes = serde_json::Map::new();
    attributes
        .extend(event.attributes.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))));
    json!({
        "Type": event.kind.name(),
        "Action": event.action.name(),
        "Actor": {"ID": event.id, "Attributes": attributes},
        "scope": "local",
        "id": event.id,
        "status": event.action.name(),
        "time": event.time.seconds(),
        "timeNano": event.time.nanoseconds(),
    })
}
