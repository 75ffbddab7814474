//! From words to a tree.

use serde_json::Value;

use super::functions;
use super::lex::{self, Piece, Word};

/// Blocks and parentheses within one another.
const MAX_DEPTH: usize = 64;

/// A part of a template.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    Action(Pipeline),
    /// The first branch whose condition holds; the last one may have none.
    If(Vec<(Option<Pipeline>, Vec<Node>)>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
    Break,
    Continue,
}

/// Commands, each of which gets the result of the one before as its last argument.
#[derive(Clone, Debug, Default)]
pub(super) struct Pipeline {
    /// Variables before `:=` or `=`.
    pub(super) variables: Vec<String>,
    /// Whether they are new.
    pub(super) declares: bool,
    pub(super) commands: Vec<Command>,
}

/// A function or an operand, with arguments.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) head: Operand,
    pub(super) arguments: Vec<Operand>,
}

/// A value, and fields of it.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub(super) base: Base,
    pub(super) path: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) enum Base {
    Dot,
    Variable(String),
    Literal(Value),
    Function(String),
    Group(Box<Pipeline>),
}

/// What ends a block.
enum End {
    File,
    Closed,
    Else(Vec<Word>),
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    /// Scopes of variables that are known.
    variables: Vec<String>,
    ranges: usize,
    depth: usize,
}

/// The tree of a template.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let pieces = lex::pieces(text)?.into_iter();
    let mut parser = Parser { pieces, variables: vec![String::new()], ranges: 0, depth: 0 };
    match parser.block()? {
        (nodes, End::File) => Ok(nodes),
        (_, End::Closed) => Err("{{end}} closes nothing".to_owned()),
        (_, End::Else(_)) => Err("{{else}} belongs to nothing".to_owned()),
    }
}

impl Parser {
    fn block(&mut self) -> Result<(Vec<Node>, End), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} blocks stand within one another"));
        }
        let known = self.variables.len();
        let mut nodes = Vec::new();
        let end = loop {
            let words = match self.pieces.next() {
                None => break End::File,
                Some(Piece::Text(text)) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Some(Piece::Action(words)) => words,
            };
            let keyword = match words.first() {
                Some(Word::Name(name)) => name.clone(),
                _ => String::new(),
            };
            let mut rest = words.iter().skip(1).cloned();
            match keyword.as_str() {
                "end" if rest.len() == 0 => break End::Closed,
                "else" => break End::Else(rest.collect()),
                "if" => nodes.push(self.branches(rest.collect())?),
                "with" => nodes.push(self.with(rest.collect())?),
                "range" => nodes.push(self.range(rest.collect())?),
                "break" | "continue" if self.ranges == 0 => {
                    return Err(format!("{{{{{keyword}}}}} stands outside of a range"));
                }
                "break" if rest.next().is_none() => nodes.push(Node::Break),
                "continue" if rest.next().is_none() => nodes.push(Node::Continue),
                "define" | "block" | "template" => {
                    return Err(format!("{keyword} is not supported in a format"));
                }
                _ => nodes.push(Node::Action(self.pipeline(words)?)),
            }
        };
        self.variables.truncate(known);
        self.depth -= 1;
        Ok((nodes, end))
    }

    fn branches(&mut self, words: Vec<Word>) -> Result<Node, String> {
        let known = self.variables.len();
        let mut condition = Some(self.pipeline(words)?);
        let mut branches = Vec::new();
        loop {
            let last = condition.is_none();
            let (nodes, end) = self.block()?;
            branches.push((condition.take(), nodes));
            match end {
                End::Closed => break,
                End::File => return Err("{{if}} is not closed by {{end}}".to_owned()),
                End::Else(_) if last => return Err("{{else}} stands twice in one {{if}}".to_owned()),
                End::Else(words) => match words.split_first() {
                    None => {}
                    Some((Word::Name(name), rest)) if name == "if" => {
                        condition = Some(self.pipeline(rest.to_vec())?);
                    }
                    Some(_) => return Err("after {{else stands nothing or an if".to_owned()),
                },
            }
        }
        self.variables.truncate(known);
        Ok(Node::If(branches))
    }

    fn with(&mut self, words: Vec<Word>) -> Result<Node, String> {
        let known = self.variables.len();
        let pipeline = self.pipeline(words)?;
        let (body, otherwise) = self.body("with")?;
        self.variables.truncate(known);
        Ok(Node::With(pipeline, body, otherwise))
    }

    fn range(&mut self, words: Vec<Word>) -> Result<Node, String> {
        let known = self.variables.len();
        let pipeline = self.pipeline(words)?;
        self.ranges += 1;
        let (body, otherwise) = self.body("range")?;
        self.ranges -= 1;
        self.variables.truncate(known);
        Ok(Node::Range(pipeline, body, otherwise))
    }

    fn body(&mut self, keyword: &str) -> Result<(Vec<Node>, Vec<Node>), String> {
        let open = || format!("{{{{{keyword}}}}} is not closed by {{{{end}}}}");
        let (body, end) = self.block()?;
        match end {
            End::Closed => Ok((body, Vec::new())),
            End::File => Err(open()),
            End::Else(words) if !words.is_empty() => {
                Err(format!("{{{{else}}}} of a {keyword} takes nothing"))
            }
            End::Else(_) => match self.block()? {
                (otherwise, End::Closed) => Ok((body, otherwise)),
                (_, End::File) => Err(open()),
                (_, End::Else(_)) => Err(format!("{{{{else}}}} stands twice in one {keyword}")),
            },
        }
    }

    fn pipeline(&mut self, words: Vec<Word>) -> Result<Pipeline, String> {
        let mut words = Words { words: words.into_iter().peekable() };
        let pipeline = self.pipe(&mut words)?;
        match words.words.next() {
            None => Ok(pipeline),
            Some(_) => Err("a ) closes nothing".to_owned()),
        }
    }

    fn pipe(&mut self, words: &mut Words) -> Result<Pipeline, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} parentheses stand within one another"));
        }
        let mut pipeline = self.variables_before(words)?;
        loop {
            pipeline.commands.push(self.command(words, pipeline.commands.is_empty())?);
            if words.words.next_if_eq(&Word::Pipe).is_none() {
                break;
            }
        }
        if pipeline.declares {
            self.variables.extend(pipeline.variables.iter().cloned());
        }
        self.depth -= 1;
        Ok(pipeline)
    }

    /// `$a :=`, `$a, $b :=` or `$a =`.
    fn variables_before(&mut self, words: &mut Words) -> Result<Pipeline, String> {
        let ahead: Vec<Word> = words.words.clone().take(4).collect();
        let (variables, operator) = match ahead.as_slice() {
            [Word::Variable(one), operator @ (Word::Declare | Word::Assign), ..] => {
                (vec![one.clone()], operator)
            }
            [
                Word::Variable(one),
                Word::Comma,
                Word::Variable(two),
                operator @ (Word::Declare | Word::Assign),
            ] => (vec![one.clone(), two.clone()], operator),
            _ => return Ok(Pipeline::default()),
        };
        let declares = *operator == Word::Declare;
        for name in &variables {
            if name.is_empty() || !(declares || self.variables.contains(name)) {
                return Err(format!("the variable ${name} is not known"));
            }
        }
        for _ in 0..variables.len() * 2 {
            words.words.next();
        }
        Ok(Pipeline { variables, declares, commands: Vec::new() })
    }

    fn command(&mut self, words: &mut Words, first: bool) -> Result<Command, String> {
        let head = self.operand(words)?.ok_or("a command is missing")?;
        let mut arguments = Vec::new();
        while let Some(argument) = self.operand(words)? {
            if let Base::Function(name) = &argument.base {
                return Err(format!("{name} is a function: put it and its arguments into parentheses"));
            }
            arguments.push(argument);
        }
        let callable = matches!(head.base, Base::Function(_)) || !head.path.is_empty();
        if !callable && (!first || !arguments.is_empty()) {
            return Err("only functions take arguments".to_owned());
        }
        Ok(Command { head, arguments })
    }

    fn operand(&mut self, words: &mut Words) -> Result<Option<Operand>, String> {
        let base = match words.words.peek() {
            None | Some(Word::Pipe | Word::Close) => return Ok(None),
            Some(Word::Comma | Word::Declare | Word::Assign) => {
                return Err("a :=, = or comma stands where a value should".to_owned());
            }
            Some(Word::Field { .. } | Word::Dot) => Base::Dot,
            Some(Word::Variable(name)) if !self.variables.contains(name) => {
                return Err(format!("the variable ${name} is not known"));
            }
            Some(Word::Variable(name)) => Base::Variable(name.clone()),
            Some(Word::Text(text)) => Base::Literal(Value::from(text.as_str())),
            Some(Word::Integer(number)) => Base::Literal(Value::from(*number)),
            Some(Word::Float(number)) => Base::Literal(Value::from(*number)),
            Some(Word::Name(name)) => match name.as_str() {
                "true" => Base::Literal(Value::Bool(true)),
                "false" => Base::Literal(Value::Bool(false)),
                name if functions::exists(name) => Base::Function(name.to_owned()),
                name => return Err(format!("there is no function {name}")),
            },
            Some(Word::Open) => {
                words.words.next();
                let inner = self.pipe(words)?;
                if words.words.peek() != Some(&Word::Close) {
                    return Err("a ( is not closed".to_owned());
                }
                Base::Group(Box::new(inner))
            }
        };
        let mut path = Vec::new();
        if let Some(Word::Field { name, .. }) = words.words.next() {
            path.push(name);
        }
        while let Some(Word::Field { name, .. }) =
            words.words.next_if(|word| matches!(word, Word::Field { glued: true, .. }))
        {
            path.push(name);
        }
        let fieldless = matches!(base, Base::Literal(_) | Base::Function(_)) && !path.is_empty();
        if fieldless {
            return Err("a field belongs to no value".to_owned());
        }
        Ok(Some(Operand { base, path }))
    }
}

struct Words {
    words: std::iter::Peekable<std::vec::IntoIter<Word>>,
}
