//! The text of a tree for one value.

use serde_json::Value;

use super::functions;
use super::parse::{Base, Command, Node, Operand, Pipeline};
use super::text;

/// More text than a format ever needs; a range over a number could make any amount.
const MAX_OUTPUT: usize = 64 << 20;

/// How a block ended.
#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

struct Run {
    variables: Vec<(String, Value)>,
    output: String,
}

/// The text of `nodes` for `value`.
pub(super) fn run(nodes: &[Node], value: &Value) -> Result<String, String> {
    let mut run = Run { variables: vec![(String::new(), value.clone())], output: String::new() };
    run.nodes(nodes, value)?;
    Ok(run.output)
}

impl Run {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, String> {
        let known = self.variables.len();
        let mut flow = Flow::On;
        for node in nodes {
            flow = self.node(node, dot)?;
            if flow != Flow::On {
                break;
            }
        }
        self.variables.truncate(known);
        Ok(flow)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, String> {
        match node {
            Node::Text(text) => self.output.push_str(text),
            Node::Action(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.variables.is_empty() {
                    self.output.push_str(&text::print(&value));
                }
            }
            Node::If(branches) => return self.branches(branches, dot),
            Node::With(pipeline, body, otherwise) => {
                let known = self.variables.len();
                let value = self.pipeline(pipeline, dot)?;
                let flow =
                    if text::truth(&value) { self.nodes(body, &value) } else { self.nodes(otherwise, dot) };
                self.variables.truncate(known);
                return flow;
            }
            Node::Range(pipeline, body, otherwise) => return self.range(pipeline, body, otherwise, dot),
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        if self.output.len() > MAX_OUTPUT {
            return Err(format!("the text is longer than {MAX_OUTPUT} bytes"));
        }
        Ok(Flow::On)
    }

    fn branches(&mut self, branches: &[(Option<Pipeline>, Vec<Node>)], dot: &Value) -> Result<Flow, String> {
        let known = self.variables.len();
        let mut flow = Ok(Flow::On);
        for (condition, body) in branches {
            let holds = match condition {
                Some(condition) => text::truth(&self.pipeline(condition, dot)?),
                None => true,
            };
            if holds {
                flow = self.nodes(body, dot);
                break;
            }
        }
        self.variables.truncate(known);
        flow
    }

    fn range(
        &mut self,
        pipeline: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<Flow, String> {
        let known = self.variables.len();
        let over = self.commands(pipeline, dot)?;
        let items = items(&over)?;
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, value) in items {
            match pipeline.variables.as_slice() {
                [] => {}
                [one] => self.set(one, value.clone(), pipeline.declares),
                [index, one, ..] => {
                    self.set(index, key, pipeline.declares);
                    self.set(one, value.clone(), pipeline.declares);
                }
            }
            let flow = self.nodes(body, &value)?;
            if pipeline.declares {
                self.variables.truncate(known);
            }
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn set(&mut self, name: &str, value: Value, declares: bool) {
        if declares {
            self.variables.push((name.to_owned(), value));
        } else if let Some((_, place)) = self.variables.iter_mut().rev().find(|(known, _)| known == name) {
            *place = value;
        }
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let value = self.commands(pipeline, dot)?;
        if pipeline.variables.len() > 1 {
            return Err("only a range sets two variables".to_owned());
        }
        for name in &pipeline.variables {
            self.set(name, value.clone(), pipeline.declares);
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let mut last = None;
        for command in &pipeline.commands {
            last = Some(self.command(command, dot, last)?);
        }
        last.ok_or_else(|| "an action is empty".to_owned())
    }

    fn command(&mut self, command: &Command, dot: &Value, last: Option<Value>) -> Result<Value, String> {
        let name = match &command.head.base {
            Base::Function(name) => Some(name.as_str()),
            _ => None,
        };
        let mut arguments = Vec::with_capacity(command.arguments.len() + 1);
        for argument in &command.arguments {
            let value = self.operand(argument, dot)?;
            // These two look at no more than they need.
            if name == Some("and") && !text::truth(&value) || name == Some("or") && text::truth(&value) {
                return Ok(value);
            }
            arguments.push(value);
        }
        arguments.extend(last);
        if let Some(name) = name {
            return functions::call(name, &arguments);
        }
        let value = self.operand(&command.head, dot)?;
        match (arguments.as_slice(), &value) {
            ([], _) => Ok(value),
            // A method such as `.Label "name"`: the data has a map in its place.
            ([Value::String(key)], Value::Object(map)) => {
                Ok(map.get(key).cloned().unwrap_or_else(|| Value::from("")))
            }
            _ => Err(format!(".{} takes no such arguments", command.head.path.join("."))),
        }
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, String> {
        let base = match &operand.base {
            Base::Dot => dot.clone(),
            Base::Literal(value) => value.clone(),
            Base::Group(pipeline) => {
                let known = self.variables.len();
                let value = self.pipeline(pipeline, dot)?;
                self.variables.truncate(known);
                value
            }
            Base::Function(name) => functions::call(name, &[])?,
            Base::Variable(name) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                found
                    .map(|(_, value)| value.clone())
                    .ok_or_else(|| format!("the variable ${name} is not known"))?
            }
        };
        operand.path.iter().try_fold(base, |value, name| field(&value, name))
    }
}

fn field(value: &Value, name: &str) -> Result<Value, String> {
    match value {
        Value::Object(map) => match map.get(name) {
            Some(found) => Ok(found.clone()),
            None if name.starts_with(char::is_uppercase) => {
                let known: Vec<&str> = map.keys().map(String::as_str).collect();
                Err(format!("there is no field {name}; there are {}", known.join(", ")))
            }
            None => Ok(Value::Null),
        },
        Value::Null => Ok(Value::Null),
        other => Err(format!("{} has no field {name}", text::kind(other))),
    }
}

/// What a range goes over, with keys.
fn items(value: &Value) -> Result<Vec<(Value, Value)>, String> {
    match value {
        Value::Array(items) => {
            Ok(items.iter().enumerate().map(|(at, item)| (Value::from(at), item.clone())).collect())
        }
        Value::Object(map) => {
            let mut items: Vec<_> =
                map.iter().map(|(key, item)| (Value::from(key.as_str()), item.clone())).collect();
            items.sort_by(|(one, _), (other, _)| one.as_str().cmp(&other.as_str()));
            Ok(items)
        }
        Value::Null => Ok(Vec::new()),
        Value::Number(number) => match number.as_i64() {
            Some(count) if count <= 100_000 => {
                Ok((0..count).map(|at| (Value::from(at), Value::from(at))).collect())
            }
            _ => Err(format!("range can not go over {number}")),
        },
        other => Err(format!("range can not go over {}", text::kind(other))),
    }
}
