//! What commands print: tables, templates and JSON, as `--format` chooses.

pub(crate) mod human;
pub(crate) mod table;
pub(crate) mod template;

use serde::Serialize;
use serde_json::{Map, Value};

use template::Template;

use crate::failure::{Failure, Result};

/// The choice of `--format`.
#[derive(Debug)]
pub(crate) enum Format {
    /// The command's own columns.
    Table,
    /// Columns of a template, with headings.
    TableOf(Template),
    /// A JSON document a line.
    Json,
    /// A line for each, as a template says.
    Lines(Template),
}

impl Format {
    /// Reads the value of `--format`; `\t` and `\n` may stand for a tab and a new line.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self> {
        let text = text.unwrap_or_default();
        let read = |text: &str| {
            let text = text.replace("\\t", "\t").replace("\\n", "\n");
            Template::parse(&text).map_err(|error| Failure::new(format!("--format: {error}")))
        };
        Ok(match text {
            "" | "table" => Self::Table,
            "json" => Self::Json,
            _ => match text.strip_prefix("table").filter(|rest| rest.starts_with(char::is_whitespace)) {
                Some(rest) => Self::TableOf(read(rest.trim())?),
                None => Self::Lines(read(text)?),
            },
        })
    }
}

/// A column that a command can print: the name of the field and the heading.
pub(crate) type Column = (&'static str, &'static str);

/// One object in the form of texts. Labels are there for `{{.Label "name"}}` and are no field of the JSON.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    fields: Map<String, Value>,
}

/// The place of labels in a row.
const LABEL: &str = "Label";

impl Row {
    /// Sets a field.
    pub(crate) fn set(&mut self, field: &str, value: impl Into<Value>) -> &mut Self {
        self.fields.insert(field.to_owned(), value.into());
        self
    }

    /// Sets the labels: all as one text, and each by its name.
    pub(crate) fn labels(&mut self, labels: &std::collections::BTreeMap<String, String>) -> &mut Self {
        let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let map = labels.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        self.fields.insert(LABEL.to_owned(), Value::Object(map));
        self.set("Labels", pairs.join(","))
    }

    fn text(&self, field: &str) -> String {
        match self.fields.get(field) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }
}

/// The text for rows. `shown` are the fields of the command's own table, `columns` all headings.
pub(crate) fn rows(format: &Format, shown: &[&str], columns: &[Column], rows: Vec<Row>) -> Result<String> {
    let heading = |field: &str| {
        columns
            .iter()
            .find(|(name, _)| *name == field)
            .map_or(String::new(), |(_, heading)| (*heading).to_owned())
    };
    match format {
        Format::Table => {
            let mut lines = vec![shown.iter().map(|field| heading(field)).collect::<Vec<_>>()];
            lines.extend(rows.iter().map(|row| shown.iter().map(|field| row.text(field)).collect()));
            Ok(table::align(&lines))
        }
        Format::TableOf(template) => {
            let mut headings: Map<String, Value> =
                columns.iter().map(|(name, heading)| ((*name).to_owned(), Value::from(*heading))).collect();
            headings.insert(LABEL.to_owned(), Value::Object(Map::new()));
            let mut lines = vec![render(template, &Value::Object(headings))?];
            for row in rows {
                lines.push(render(template, &Value::Object(row.fields))?);
            }
            let cells: Vec<Vec<String>> = lines
                .iter()
                .flat_map(|text| text.split('\n'))
                .map(|line| line.split('\t').map(str::to_owned).collect())
                .collect();
            Ok(table::align(&cells))
        }
        Format::Json => Ok(rows
            .into_iter()
            .map(|mut row| {
                row.fields.remove(LABEL);
                format!("{}\n", Value::Object(row.fields))
            })
            .collect()),
        Format::Lines(template) => {
            let lines = rows.into_iter().map(|row| Ok(render(template, &Value::Object(row.fields))? + "\n"));
            lines.collect()
        }
    }
}

fn render(template: &Template, value: &Value) -> Result<String> {
    template.render(value).map_err(|error| Failure::new(format!("--format: {error}")))
}

/// The text for documents: a JSON list, or for each what a template says.
pub(crate) fn documents<T: Serialize>(format: Option<&str>, documents: &[T]) -> Result<String> {
    match format.unwrap_or_default() {
        "" => {
            let mut bytes = Vec::new();
            let style = serde_json::ser::PrettyFormatter::with_indent(b"    ");
            documents.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, style))?;
            bytes.push(b'\n');
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        "json" => documents.iter().map(|document| Ok(serde_json::to_string(document)? + "\n")).collect(),
        text => {
            let template =
                Template::parse(text).map_err(|error| Failure::new(format!("--format: {error}")))?;
            let line = |document: &T| Ok(render(&template, &serde_json::to_value(document)?)? + "\n");
            documents.iter().map(line).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Format, Row, documents, rows};

    const COLUMNS: [super::Column; 2] = [("ID", "CONTAINER ID"), ("Names", "NAMES")];

    fn print(format: &str) -> String {
        let mut row = Row::default();
        row.set("ID", "4c01").set("Names", "web").labels(&[("a".to_owned(), "1".to_owned())].into());
        let format = Format::parse(Some(format)).unwrap();
        rows(&format, &["ID", "Names"], &COLUMNS, vec![row.clone(), row]).unwrap()
    }

    #[test]
    fn forms() {
        assert_eq!(print(""), "CONTAINER ID   NAMES\n4c01           web\n4c01           web\n");
        assert_eq!(
            print("table {{.Names}}\\t{{.ID}}"),
            "NAMES     CONTAINER ID\nweb       4c01\nweb       4c01\n"
        );
        assert_eq!(print("{{.ID}}\\n{{.Label \"a\"}}"), "4c01\n1\n4c01\n1\n");
        assert_eq!(print("json").lines().next(), Some(r#"{"ID":"4c01","Labels":"a=1","Names":"web"}"#));
        assert!(Format::parse(Some("{{.ID")).is_err());
    }

    #[test]
    fn documents_are_a_list_or_lines() {
        let values = [serde_json::json!({"Id": 1})];
        assert_eq!(documents(None, &values).unwrap(), "[\n    {\n        \"Id\": 1\n    }\n]\n");
        assert_eq!(documents(Some("json"), &values).unwrap(), "{\"Id\":1}\n");
        assert_eq!(documents(Some("{{.Id}}"), &values).unwrap(), "1\n");
        assert_eq!(documents::<u8>(None, &[]).unwrap(), "[]\n");
    }
}
