//! From the text of a template to text and the words of actions.

/// A word within an action.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Word {
    /// `.`, alone.
    Dot,
    /// `.Name`; `glued` when it follows the word before without a space.
    Field {
        name: String,
        glued: bool,
    },
    /// `$name`; `$` has an empty name.
    Variable(String),
    /// A keyword, a function, `true`, `false`.
    Name(String),
    Text(String),
    Integer(i64),
    Float(f64),
    Open,
    Close,
    Pipe,
    Comma,
    /// `:=`
    Declare,
    /// `=`
    Assign,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Action(Vec<Word>),
}

/// What is left of a text.
struct Letters<'a> {
    rest: &'a str,
}

impl Letters<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        self.next_if(|_| true)
    }

    fn next_if(&mut self, fits: impl Fn(char) -> bool) -> Option<char> {
        let mut letters = self.rest.chars();
        let letter = letters.next().filter(|letter| fits(*letter))?;
        self.rest = letters.as_str();
        Some(letter)
    }
}

/// The pieces of a template.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let (before, found) = match rest.find("{{") {
            Some(at) => (&rest[..at], Some(&rest[at + 2..])),
            None => (rest, None),
        };
        let trims = found.is_some_and(|inner| {
            inner.starts_with('-') && inner[1..].starts_with(|letter: char| letter.is_ascii_whitespace())
        });
        let mut kept = if trim_next { before.trim_start() } else { before };
        if trims {
            kept = kept.trim_end();
        }
        if !kept.is_empty() {
            pieces.push(Piece::Text(kept.to_owned()));
        }
        let Some(inner) = found else { return Ok(pieces) };
        let inner = if trims { inner[1..].trim_start() } else { inner };
        let (words, after, trim) = if let Some(comment) = inner.strip_prefix("/*") {
            let (_, after) = comment.split_once("*/").ok_or("a comment is not closed")?;
            let (after, trim) = close(after).ok_or("a comment must be all that is in its braces")?;
            (None, after, trim)
        } else {
            let (words, after, trim) = action(inner)?;
            (Some(words), after, trim)
        };
        pieces.extend(words.map(Piece::Action));
        (rest, trim_next) = (after, trim);
    }
}

/// What follows closing braces, and whether they trim.
fn close(text: &str) -> Option<(&str, bool)> {
    let trimmed = text.trim_start();
    if trimmed.len() < text.len()
        && let Some(after) = trimmed.strip_prefix("-}}")
    {
        return Some((after, true));
    }
    trimmed.strip_prefix("}}").map(|after| (after, false))
}

fn action(text: &str) -> Result<(Vec<Word>, &str, bool), String> {
    let mut words = Vec::new();
    let mut rest = text;
    let mut spaced = true;
    loop {
        if let Some((after, trim)) = close(rest) {
            return Ok((words, after, trim));
        }
        let trimmed = rest.trim_start();
        spaced |= trimmed.len() < rest.len();
        if trimmed.is_empty() {
            return Err("an action is not closed: }} is missing".to_owned());
        }
        let mut letters = Letters { rest: trimmed };
        let word = word(&mut letters, trimmed, spaced)?;
        if word == Word::Dot && !spaced && !matches!(words.last(), None | Some(Word::Open | Word::Pipe)) {
            return Err("a dot stands where the name of a field should".to_owned());
        }
        if matches!(word, Word::Field { glued: true, .. }) && words.last() == Some(&Word::Dot) {
            return Err("two dots stand in a row".to_owned());
        }
        words.push(word);
        rest = letters.rest;
        spaced = false;
    }
}

fn word(letters: &mut Letters<'_>, text: &str, spaced: bool) -> Result<Word, String> {
    let Some(first) = letters.next() else { return Err("an action is empty".to_owned()) };
    let digit_next = |letters: &mut Letters<'_>| letters.peek().is_some_and(|letter| letter.is_ascii_digit());
    match first {
        '(' => Ok(Word::Open),
        ')' => Ok(Word::Close),
        '|' => Ok(Word::Pipe),
        ',' => Ok(Word::Comma),
        '=' => Ok(Word::Assign),
        ':' if letters.next() == Some('=') => Ok(Word::Declare),
        '"' => quoted(letters).map(Word::Text),
        '`' => raw(letters).map(Word::Text),
        '\'' => character(letters).map(Word::Integer),
        '$' => Ok(Word::Variable(name(letters))),
        '.' if digit_next(letters) => number(text, letters),
        '.' => match name(letters) {
            name if name.is_empty() => Ok(Word::Dot),
            name => Ok(Word::Field { name, glued: !spaced }),
        },
        '0'..='9' => number(text, letters),
        '-' | '+' if digit_next(letters) => number(text, letters),
        letter if letter.is_alphabetic() || letter == '_' => {
            Ok(Word::Name(format!("{letter}{}", name(letters))))
        }
        letter => Err(format!("{letter:?} does not belong into an action")),
    }
}

fn name(letters: &mut Letters<'_>) -> String {
    let mut name = String::new();
    while let Some(letter) = letters.next_if(|letter| letter.is_alphanumeric() || letter == '_') {
        name.push(letter);
    }
    name
}

fn number(text: &str, letters: &mut Letters<'_>) -> Result<Word, String> {
    let length = text
        .char_indices()
        .skip(1)
        .find(|(_, letter)| !(letter.is_ascii_alphanumeric() || *letter == '.' || *letter == '_'))
        .map_or(text.len(), |(at, _)| at);
    let digits = &text[..length];
    // The first character is taken already, and all of them are ASCII.
    for _ in 1..length {
        letters.next();
    }
    let plain = digits.replace('_', "");
    let (sign, bare) = match plain.strip_prefix('-') {
        Some(bare) => (-1, bare),
        None => (1, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let integer = match (bare.strip_prefix("0x"), bare.strip_prefix("0b")) {
        (Some(hex), _) => i64::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with(['+', '-'])),
        (_, Some(binary)) => i64::from_str_radix(binary, 2).ok().filter(|_| !binary.starts_with(['+', '-'])),
        _ => bare.parse::<i64>().ok(),
    };
    if let Some(integer) = integer {
        return Ok(Word::Integer(sign * integer));
    }
    match plain.parse::<f64>() {
        Ok(float) if float.is_finite() => Ok(Word::Float(float)),
        _ => Err(format!("{digits:?} is no number")),
    }
}

fn raw(letters: &mut Letters<'_>) -> Result<String, String> {
    let mut text = String::new();
    loop {
        match letters.next() {
            None => return Err("a ` is not closed".to_owned()),
            Some('`') => return Ok(text),
            Some(letter) => text.push(letter),
        }
    }
}

fn quoted(letters: &mut Letters<'_>) -> Result<String, String> {
    let mut text = String::new();
    loop {
        match letters.next() {
            None | Some('\n') => return Err("a quote is not closed".to_owned()),
            Some('"') => return Ok(text),
            Some('\\') => text.push(escape(letters)?),
            Some(letter) => text.push(letter),
        }
    }
}

fn character(letters: &mut Letters<'_>) -> Result<i64, String> {
    let letter = match letters.next() {
        Some('\\') => Some(escape(letters)?),
        other => other.filter(|letter| *letter != '\'' && *letter != '\n'),
    };
    match (letter, letters.next()) {
        (Some(letter), Some('\'')) => Ok(i64::from(u32::from(letter))),
        _ => Err("between two ' stands one character".to_owned()),
    }
}

fn escape(letters: &mut Letters<'_>) -> Result<char, String> {
    let letter = letters.next();
    let digits = match letter {
        Some('n') => return Ok('\n'),
        Some('t') => return Ok('\t'),
        Some('r') => return Ok('\r'),
        Some('a') => return Ok('\u{7}'),
        Some('b') => return Ok('\u{8}'),
        Some('f') => return Ok('\u{c}'),
        Some('v') => return Ok('\u{b}'),
        Some(letter @ ('\\' | '"' | '\'')) => return Ok(letter),
        Some('x') => 2,
        Some('u') => 4,
        Some('U') => 8,
        Some(letter) => return Err(format!("\\{letter} is no escape")),
        None => return Err("a quote is not closed".to_owned()),
    };
    let mut code = 0_u32;
    for _ in 0..digits {
        let digit = letters.next().and_then(|letter| letter.to_digit(16));
        code = code.wrapping_mul(16) | digit.ok_or("an escape has too few hexadecimal digits")?;
    }
    char::from_u32(code).ok_or_else(|| "an escape names no character".to_owned())
}
