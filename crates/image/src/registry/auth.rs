//! What a registry wants to see before it answers: challenges, and the tokens that meet them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::credentials::Credential;
use crate::{Error, Kind, Result};

/// The largest answer of a token server.
pub(super) const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// What a registry asks for, RFC 7235 as registries use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// Reads a `WWW-Authenticate` header; `None` when it asks for something else.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (name, value) in parameters(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Self::Bearer { realm: realm?, service, scope })
    }
}

/// `NAME="VALUE"` or `NAME=VALUE`, separated by commas.
fn parameters(mut text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_start_matches([',', ' ']).trim();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_value(quoted),
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let (value, rest) = rest.split_at(end);
                (value.trim().to_owned(), rest)
            }
        };
        found.push((name, value));
        text = rest;
    }
    found
}

fn quoted_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, text.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// What a token server answers.
#[derive(Debug, Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

pub(super) fn parse_token(bytes: &[u8]) -> Result<String> {
    let malformed = || Error::new("the token server's answer holds no token").with_kind(Kind::Unauthorized);
    let answer: TokenAnswer = serde_json::from_slice(bytes).map_err(|_| malformed())?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
    // It becomes a header.
    let is_legal =
        |token: &String| !token.is_empty() && token.bytes().all(|byte| (0x21..0x7f).contains(&byte));
    token.filter(is_legal).ok_or_else(malformed)
}

/// A request for a token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenRequest {
    pub(super) url: String,
    /// The `Authorization` header.
    pub(super) authorization: Option<String>,
    /// The body of a POST; `None`: a GET.
    pub(super) form: Option<String>,
}

pub(super) fn token_request(
    realm: &str,
    service: Option<&str>,
    scope: Option<&str>,
    credential: Option<&Credential>,
) -> TokenRequest {
    let mut query = Vec::new();
    query.extend(service.map(|service| ("service", service)));
    query.extend(scope.into_iter().flat_map(|scope| scope.split(' ')).map(|scope| ("scope", scope)));
    if let Some(Credential::IdentityToken(token)) = credential {
        // An identity token is changed for others by OAuth2's form.
        query.extend([
            ("grant_type", "refresh_token"),
            ("client_id", "moat"),
            ("refresh_token", token.as_str()),
        ]);
        return TokenRequest { url: realm.to_owned(), authorization: None, form: Some(form(&query)) };
    }
    let authorization = credential.and_then(|credential| match credential {
        Credential::Basic { user, password } => Some(basic(user, password)),
        Credential::IdentityToken(_) => None,
    });
    let mut url = realm.to_owned();
    if !query.is_empty() {
        url.push(if realm.contains('?') { '&' } else { '?' });
        url.push_str(&form(&query));
    }
    TokenRequest { url, authorization, form: None }
}

fn form(pairs: &[(&str, &str)]) -> String {
    let encoded: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{name}={}", percent(value))).collect();
    encoded.join("&")
}

/// A value as it may stand in a URL.
pub(super) fn percent(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let header = r#"Bearer realm="https://auth.example/t?a=b",service="registry, \"x\"",scope="repository:a/b:pull""#;
        let challenge = Challenge::Bearer {
            realm: "https://auth.example/t?a=b".to_owned(),
            service: Some("registry, \"x\"".to_owned()),
            scope: Some("repository:a/b:pull".to_owned()),
        };
        assert_eq!(Challenge::parse(header), Some(challenge));
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("basic"), Some(Challenge::Basic));
        for other in ["", "Negotiate", "Bearer", "Bearer service=x", "Bearer realm"] {
            assert_eq!(Challenge::parse(other), None, "{other}");
        }
    }

    #[test]
    fn requests_for_tokens() {
        let basic = Credential::Basic { user: "u".to_owned(), password: "p".to_owned() };
        let request = token_request(
            "https://a/t",
            Some("reg"),
            Some("repository:x:pull repository:y:pull"),
            Some(&basic),
        );
        assert_eq!(
            request.url,
            "https://a/t?service=reg&scope=repository%3Ax%3Apull&scope=repository%3Ay%3Apull"
        );
        assert_eq!(request.authorization.as_deref(), Some("Basic dTpw"));
        let token = Credential::IdentityToken("a&b".to_owned());
        let request = token_request("https://a/t", Some("reg"), None, Some(&token));
        let form = "service=reg&grant_type=refresh_token&client_id=moat&refresh_token=a%26b";
        assert_eq!(request.form.as_deref(), Some(form));
    }

    #[test]
    fn tokens() {
        assert_eq!(parse_token(br#"{"token":"a"}"#).unwrap(), "a");
        assert_eq!(parse_token(br#"{"access_token":"b","expires_in":60}"#).unwrap(), "b");
        for bad in [&b""[..], b"{}", b"{\"token\":\"\"}", b"{\"token\":\"a\\nb\"}", b"[]"] {
            assert!(parse_token(bad).is_err());
        }
    }
}
