//! The functions of templates: Go's own, and those that Docker adds.

use std::cmp::Ordering;

use serde_json::Value;

use super::text;

/// The longest text that padding makes.
const MAX_WIDTH: usize = 4096;

const NAMES: [&str; 24] = [
    "and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "index", "len", "slice", "print", "printf",
    "println", "json", "join", "split", "title", "lower", "upper", "pad", "truncate", "trim",
];

/// Whether there is a function of that name.
pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// The value of a function.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let result = match name {
        "and" | "or" => arguments.last().cloned().ok_or_else(|| "needs arguments".to_owned()),
        "not" => one(arguments).map(|value| Value::Bool(!text::truth(value))),
        "eq" => equal(arguments).map(Value::Bool),
        "ne" => two(arguments).and_then(|_| equal(arguments)).map(|same| Value::Bool(!same)),
        "lt" => order(arguments).map(|order| Value::Bool(order == Ordering::Less)),
        "le" => order(arguments).map(|order| Value::Bool(order != Ordering::Greater)),
        "gt" => order(arguments).map(|order| Value::Bool(order == Ordering::Greater)),
        "ge" => order(arguments).map(|order| Value::Bool(order != Ordering::Less)),
        "index" => index(arguments),
        "len" => one(arguments).and_then(length).map(Value::from),
        "slice" => slice(arguments),
        "print" => Ok(Value::from(print(arguments))),
        "println" => {
            let words: Vec<String> = arguments.iter().map(text::print).collect();
            Ok(Value::from(format!("{}\n", words.join(" "))))
        }
        "printf" => printf(arguments).map(Value::from),
        "json" => one(arguments).map(|value| Value::from(value.to_string())),
        "join" => join(arguments),
        "split" => two(arguments).and_then(|(text, by)| {
            let parts: Vec<Value> = string(text)?.split(string(by)?).map(Value::from).collect();
            Ok(Value::from(parts))
        }),
        "title" => one(arguments).and_then(string).map(|text| Value::from(title(text))),
        "lower" => one(arguments).and_then(string).map(|text| Value::from(text.to_lowercase())),
        "upper" => one(arguments).and_then(string).map(|text| Value::from(text.to_uppercase())),
        "trim" => one(arguments).and_then(string).map(|text| Value::from(text.trim())),
        "pad" => pad(arguments),
        "truncate" => two(arguments).and_then(|(text, width)| {
            let width = self::width(width)?;
            Ok(Value::from(string(text)?.chars().take(width).collect::<String>()))
        }),
        _ => Err("is no function".to_owned()),
    };
    result.map_err(|error| format!("{name} {error}"))
}

fn one(arguments: &[Value]) -> Result<&Value, String> {
    match arguments {
        [one] => Ok(one),
        _ => Err(format!("takes one argument and got {}", arguments.len())),
    }
}

fn two(arguments: &[Value]) -> Result<(&Value, &Value), String> {
    match arguments {
        [one, two] => Ok((one, two)),
        _ => Err(format!("takes two arguments and got {}", arguments.len())),
    }
}

fn string(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("takes a text and got {}", text::kind(value)))
}

fn width(value: &Value) -> Result<usize, String> {
    let width = value.as_u64().and_then(|width| usize::try_from(width).ok());
    width.filter(|width| *width <= MAX_WIDTH).ok_or_else(|| format!("takes a width up to {MAX_WIDTH}"))
}

fn equal(arguments: &[Value]) -> Result<bool, String> {
    let [first, others @ ..] = arguments else { return Err("needs arguments".to_owned()) };
    if others.is_empty() {
        return Err("needs something to compare with".to_owned());
    }
    for other in others {
        let alike = std::mem::discriminant(first) == std::mem::discriminant(other);
        if !alike && !first.is_null() && !other.is_null() {
            return Err(format!("can not compare {} with {}", text::kind(first), text::kind(other)));
        }
        let same = match (first.as_f64(), other.as_f64()) {
            (Some(one), Some(two)) => one.total_cmp(&two) == Ordering::Equal,
            _ => first == other,
        };
        if same {
            return Ok(true);
        }
    }
    Ok(false)
}

fn order(arguments: &[Value]) -> Result<Ordering, String> {
    let (one, two) = two(arguments)?;
    match (one, two) {
        (Value::String(one), Value::String(two)) => Ok(one.cmp(two)),
        (Value::Number(_), Value::Number(_)) => match (one.as_i64(), two.as_i64()) {
            (Some(one), Some(two)) => Ok(one.cmp(&two)),
            _ => Ok(one.as_f64().unwrap_or(0.0).total_cmp(&two.as_f64().unwrap_or(0.0))),
        },
        _ => Err(format!("can not order {} and {}", text::kind(one), text::kind(two))),
    }
}

fn index(arguments: &[Value]) -> Result<Value, String> {
    let [first, keys @ ..] = arguments else { return Err("needs arguments".to_owned()) };
    let mut value = first.clone();
    for key in keys {
        value = match (&value, key) {
            (Value::Array(items), Value::Number(_)) => place(items.len(), key).and_then(|at| {
                items.get(at).cloned().ok_or_else(|| format!("{key} is beyond a list of {}", items.len()))
            })?,
            (Value::String(text), Value::Number(_)) => place(text.len(), key).and_then(|at| {
                let byte = text.as_bytes().get(at).copied();
                byte.map(Value::from).ok_or_else(|| format!("{key} is beyond a text of {}", text.len()))
            })?,
            // A missing key of a map of texts is an empty text, as in Go.
            (Value::Object(map), Value::String(key)) => map.get(key).cloned().unwrap_or_else(|| {
                if map.values().all(Value::is_string) { Value::from("") } else { Value::Null }
            }),
            (Value::Null, _) => Value::Null,
            (value, key) => return Err(format!("can not look for {key} in {}", text::kind(value))),
        };
    }
    Ok(value)
}

fn place(length: usize, key: &Value) -> Result<usize, String> {
    let at = key.as_u64().and_then(|at| usize::try_from(at).ok());
    at.filter(|at| *at <= length).ok_or_else(|| format!("{key} is beyond a length of {length}"))
}

fn length(value: &Value) -> Result<usize, String> {
    match value {
        Value::String(text) => Ok(text.len()),
        Value::Array(items) => Ok(items.len()),
        Value::Object(map) => Ok(map.len()),
        Value::Null => Ok(0),
        other => Err(format!("of {} is not known", text::kind(other))),
    }
}

fn slice(arguments: &[Value]) -> Result<Value, String> {
    let [value, bounds @ ..] = arguments else { return Err("needs arguments".to_owned()) };
    let length = length(value)?;
    let (from, to) = match bounds {
        [] => (0, length),
        [from] => (place(length, from)?, length),
        [from, to] => (place(length, from)?, place(length, to)?),
        _ => return Err("takes two bounds".to_owned()),
    };
    match value {
        _ if from > to => Err(format!("goes backwards from {from} to {to}")),
        Value::Array(items) => Ok(Value::from(items.get(from..to).unwrap_or_default().to_vec())),
        Value::String(text) => {
            text.get(from..to).map(Value::from).ok_or_else(|| "would cut a character in two".to_owned())
        }
        other => Err(format!("of {} is not known", text::kind(other))),
    }
}

/// Spaces stand only between arguments neither of which is a text.
fn print(arguments: &[Value]) -> String {
    let mut line = String::new();
    for (at, value) in arguments.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|before| arguments.get(before));
        if before.is_some_and(|before| !before.is_string()) && !value.is_string() {
            line.push(' ');
        }
        line.push_str(&text::print(value));
    }
    line
}

fn join(arguments: &[Value]) -> Result<Value, String> {
    let (items, by) = two(arguments)?;
    let by = string(by)?;
    match items {
        Value::Null => Ok(Value::from("")),
        Value::Array(items) => {
            let words: Vec<String> = items.iter().map(text::print).collect();
            Ok(Value::from(words.join(by)))
        }
        other => Err(format!("takes a list and got {}", text::kind(other))),
    }
}

fn title(text: &str) -> String {
    let mut fresh = true;
    text.chars()
        .map(|letter| {
            let titled = if fresh { letter.to_uppercase().next().unwrap_or(letter) } else { letter };
            fresh = !(letter.is_alphanumeric() || letter == '_' || letter == '\'');
            titled
        })
        .collect()
}

fn pad(arguments: &[Value]) -> Result<Value, String> {
    let [value, before, after] = arguments else {
        return Err(format!("takes three arguments and got {}", arguments.len()));
    };
    let (before, after) = (width(before)?, width(after)?);
    Ok(Value::from(format!("{}{}{}", " ".repeat(before), text::print(value), " ".repeat(after))))
}

/// The flags of one verb.
#[derive(Default)]
struct Verb {
    left: bool,
    zero: bool,
    plus: bool,
    sharp: bool,
    width: usize,
    precision: Option<usize>,
}

fn printf(arguments: &[Value]) -> Result<String, String> {
    let [first, values @ ..] = arguments else { return Err("needs a format".to_owned()) };
    let mut letters = string(first)?.chars().peekable();
    let mut values = values.iter();
    let mut line = String::new();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            line.push(letter);
            continue;
        }
        let mut verb = Verb::default();
        while let Some(flag) = letters.next_if(|letter| "-0+# ".contains(*letter)) {
            match flag {
                '-' => verb.left = true,
                '0' => verb.zero = true,
                '+' => verb.plus = true,
                '#' => verb.sharp = true,
                _ => {}
            }
        }
        verb.width = number(&mut letters)?.unwrap_or(0);
        if letters.next_if_eq(&'.').is_some() {
            verb.precision = Some(number(&mut letters)?.unwrap_or(0));
        }
        match letters.next() {
            None => line.push_str("%!(NOVERB)"),
            Some('%') => line.push('%'),
            Some(name) => match values.next() {
                _ if !"vsdqtxXfgceT".contains(name) || name == 'T' => {
                    line.push_str(&format!("%!{name}(NOVERB)"));
                }
                None => line.push_str(&format!("%!{name}(MISSING)")),
                Some(value) => line.push_str(&verb.apply(name, value)),
            },
        }
    }
    let extra: Vec<String> =
        values.map(|value| format!("{}={}", go_type(value), text::print(value))).collect();
    if !extra.is_empty() {
        line.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(line)
}

fn number(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Option<usize>, String> {
    let mut digits = String::new();
    while let Some(digit) = letters.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    if digits.is_empty() {
        return Ok(None);
    }
    let width = digits.parse().ok().filter(|width| *width <= MAX_WIDTH);
    width.map(Some).ok_or_else(|| format!("takes widths up to {MAX_WIDTH}"))
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

impl Verb {
    fn apply(&self, name: char, value: &Value) -> String {
        let integer = value.as_i64();
        let float = value.as_f64().filter(|_| value.is_f64());
        let body = match (name, value, integer, float) {
            ('v', _, _, _) => text::print(value),
            ('s', Value::String(text), ..) => match self.precision {
                Some(most) => text.chars().take(most).collect(),
                None => text.clone(),
            },
            ('s', Value::Array(_) | Value::Object(_), ..) => text::print(value),
            ('q', Value::String(_), ..) => value.to_string(),
            ('t', Value::Bool(truth), ..) => truth.to_string(),
            ('d', _, Some(number), _) if self.plus && number >= 0 => format!("+{number}"),
            ('d', _, Some(number), _) => number.to_string(),
            ('x', _, Some(number), _) if self.sharp => format!("{number:#x}"),
            ('x', _, Some(number), _) => format!("{number:x}"),
            ('X', _, Some(number), _) => format!("{number:X}"),
            ('x', Value::String(text), ..) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
            ('c', _, Some(number), _) => {
                u32::try_from(number).ok().and_then(char::from_u32).unwrap_or('\u{fffd}').to_string()
            }
            ('f', _, _, Some(number)) => format!("{number:.*}", self.precision.unwrap_or(6)),
            ('e', _, _, Some(number)) => format!("{number:.*e}", self.precision.unwrap_or(6)),
            ('g', _, _, Some(number)) => text::float(number),
            _ => format!("%!{name}({}={})", go_type(value), text::print(value)),
        };
        let missing = self.width.saturating_sub(body.chars().count());
        let (sign, digits) = body.split_at(usize::from(value.is_number() && body.starts_with(['-', '+'])));
        match (self.left, self.zero && value.is_number()) {
            (true, _) => format!("{body}{}", " ".repeat(missing)),
            (false, true) => format!("{sign}{}{digits}", "0".repeat(missing)),
            (false, false) => format!("{}{body}", " ".repeat(missing)),
        }
    }
}
