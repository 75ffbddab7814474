//! Who the user is to a registry: `~/.docker/config.json` and credential helpers, as Docker has them.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::client::Endpoint;
use super::spec::RegistriesSpec;
use crate::{Context, DEFAULT_DOMAIN, Error, Kind, Result};

/// Docker's own registry in configuration files.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
/// The user name that stands for a token.
const TOKEN_USER: &str = "<token>";

/// What proves who the user is.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A name and a password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token for which the registry's token server gives others.
    IdentityToken(String),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Basic { user, .. } => write!(f, "Basic({user})"),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
        }
    }
}

/// Where credentials come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Docker's configuration file.
    file: Option<PathBuf>,
    given: Option<Credential>,
}

impl Credentials {
    /// Those of `$DOCKER_CONFIG/config.json`, or of `~/.docker/config.json`.
    pub fn of_user() -> Self {
        let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = folder("DOCKER_CONFIG").or_else(|| folder("HOME").map(|home| home.join(".docker")));
        Self { file: folder.map(|folder| folder.join("config.json")), given: None }
    }

    /// Those of a file of Docker's form.
    pub fn of_file(path: &Path) -> Self {
        Self { file: Some(path.to_owned()), given: None }
    }

    /// One for every registry that is asked.
    pub fn given(credential: Credential) -> Self {
        Self { file: None, given: Some(credential) }
    }

    /// Nobody.
    pub fn none() -> Self {
        Self::default()
    }

    /// The credential for a registry; `None`: nobody.
    ///
    /// Errors: the file is malformed; a helper fails.
    pub(crate) fn find(&self, domain: &str) -> Result<Option<Credential>> {
        if self.given.is_some() {
            return Ok(self.given.clone());
        }
        let Some(file) = self.read()? else { return Ok(None) };
        let key = key(domain);
        if let Some(helper) = helper(&file, key) {
            return ask_helper(&helper, key);
        }
        let auths = file.get("auths").and_then(Value::as_object);
        let Some(entry) = auths.and_then(|auths| entry(auths, key)) else { return Ok(None) };
        let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credential::IdentityToken(token.to_owned())));
        }
        if let Some(auth) = text("auth") {
            return decode(auth).context(|| format!("the entry {key} of {}", self.shown())).map(Some);
        }
        Ok(match (text("username"), text("password")) {
            (Some(user), Some(password)) => {
                Some(Credential::Basic { user: user.to_owned(), password: password.to_owned() })
            }
            _ => None,
        })
    }

    fn shown(&self) -> String {
        self.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default()
    }

    fn read(&self) -> Result<Option<Map<String, Value>>> {
        let Some(path) = &self.file else { return Ok(None) };
        let text = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.context(|| path.display().to_string())?,
        };
        let fault = |what: String| Error::new(format!("{}: {what}", path.display()));
        match serde_json::from_slice(&text) {
            Ok(Value::Object(file)) => Ok(Some(file)),
            Ok(_) => Err(fault("it is no object".to_owned())),
            Err(error) => Err(fault(error.to_string())),
        }
    }

    fn write(&self, file: &Map<String, Value>) -> Result<()> {
        let Some(path) = &self.file else {
            return Err(Error::new(
                "there is no file for credentials: neither HOME nor DOCKER_CONFIG is set",
            ));
        };
        let what = || format!("write {}", path.display());
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).context(what)?;
        // The file may be a symbolic link into a folder of the user's; what it leads to is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        let temporary = path.with_extension(format!("json.{}", std::process::id()));
        let text = serde_json::to_vec_pretty(file).map_err(|error| Error::new(error.to_string()))?;
        let mut options = File::options();
        let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        let written = opened.and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        });
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written.context(what)
    }
}

/// Checks a credential with a registry, and keeps it: with the helper that is configured, or in the file.
///
/// Errors: the registry does not accept it ([`Kind::Unauthorized`]); it can not be kept.
pub fn login(
    credentials: &Credentials,
    registries: &RegistriesSpec,
    domain: &str,
    credential: &Credential,
) -> Result<()> {
    let endpoint = Endpoint::new(domain, registries, Some(credential.clone()))?;
    endpoint.check_login().context(|| format!("log in to {domain}"))?;
    let mut file = credentials.read()?.unwrap_or_default();
    let key = key(domain);
    if let Some(helper) = helper(&file, key) {
        let (user, secret) = match credential {
            Credential::Basic { user, password } => (user.as_str(), password.as_str()),
            Credential::IdentityToken(token) => (TOKEN_USER, token.as_str()),
        };
        let input = json!({ "ServerURL": key, "Username": user, "Secret": secret }).to_string();
        run_helper(&helper, "store", &input)?;
        return Ok(());
    }
    let entry = match credential {
        Credential::Basic { user, password } => {
            json!({ "auth": STANDARD.encode(format!("{user}:{password}")) })
        }
        Credential::IdentityToken(token) => json!({ "identitytoken": token }),
    };
    match file.entry("auths").or_insert_with(|| json!({})) {
        Value::Object(auths) => auths.insert(key.to_owned(), entry),
        _ => return Err(Error::new(format!("{}: auths is no object", credentials.shown()))),
    };
    credentials.write(&file)
}

/// Forgets the credential for a registry. Returns whether there was one.
pub fn logout(credentials: &Credentials, domain: &str) -> Result<bool> {
    let Some(mut file) = credentials.read()? else { return Ok(false) };
    let key = key(domain);
    let mut found = false;
    if let Some(helper) = helper(&file, key) {
        found = ask_helper(&helper, key)?.is_some();
        if found {
            run_helper(&helper, "erase", key)?;
        }
    }
    if let Some(Value::Object(auths)) = file.get_mut("auths") {
        let keys: Vec<String> = auths.keys().filter(|name| normal(name) == normal(key)).cloned().collect();
        for name in keys {
            auths.remove(&name);
            found = true;
        }
        credentials.write(&file)?;
    }
    Ok(found)
}

fn key(domain: &str) -> &str {
    if domain == DEFAULT_DOMAIN { DOCKER_KEY } else { domain }
}

/// Old files have URLs where others have hosts.
fn normal(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or(rest)
}

fn entry<'a>(auths: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    auths
        .get(key)
        .or_else(|| auths.iter().find(|(name, _)| normal(name) == normal(key)).map(|(_, entry)| entry))
}

fn helper(file: &Map<String, Value>, key: &str) -> Option<String> {
    let own = file.get("credHelpers").and_then(|helpers| helpers.get(key)).and_then(Value::as_str);
    let name = own.or_else(|| file.get("credsStore").and_then(Value::as_str));
    name.filter(|name| !name.is_empty()).map(str::to_owned)
}

fn decode(auth: &str) -> Result<Credential> {
    let malformed = || Error::new("auth is not the base64 of NAME:PASSWORD");
    let bytes = STANDARD.decode(auth.trim_end_matches('\0')).map_err(|_| malformed())?;
    let text = String::from_utf8(bytes).map_err(|_| malformed())?;
    let (user, password) = text.trim_end_matches('\0').split_once(':').ok_or_else(malformed)?;
    Ok(Credential::Basic { user: user.to_owned(), password: password.to_owned() })
}

fn ask_helper(helper: &str, key: &str) -> Result<Option<Credential>> {
    let answer = match run_helper(helper, "get", key) {
        Ok(answer) => answer,
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let malformed = || Error::new(format!("docker-credential-{helper} does not answer as helpers do"));
    let answer: Value = serde_json::from_slice(&answer).map_err(|_| malformed())?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
    let (user, secret) = text("Username").zip(text("Secret")).ok_or_else(malformed)?;
    Ok(Some(match user.as_str() {
        TOKEN_USER => Credential::IdentityToken(secret),
        _ => Credential::Basic { user, password: secret },
    }))
}

/// Runs `docker-credential-HELPER VERB` with `input`.
fn run_helper(helper: &str, verb: &str, input: &str) -> Result<Vec<u8>> {
    let name = format!("docker-credential-{helper}");
    if helper.contains('/') {
        return Err(Error::new(format!("credential helper {helper:?} is no name of one")));
    }
    let what = || format!("run {name} {verb}");
    let mut command = Command::new(&name);
    command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading says why by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().context(what)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    // Helpers tell on their standard output, too.
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let kind = if said.contains("credentials not found") { Kind::NotFound } else { Kind::Other };
    Err(Error::new(format!("{name} {verb} ended with {}: {said}", output.status)).with_kind(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(text: &str) -> (tempfile::TempDir, Credentials) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        (folder, Credentials::of_file(&path))
    }

    #[test]
    fn entries_of_dockers_file() {
        let (_folder, credentials) = credentials(
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnE="},"https://old.example/v2/":{"auth":"YTpi"},
               "token.example:5000":{"identitytoken":"t"},"empty.example":{}},"HttpHeaders":{}}"#,
        );
        let basic = |user: &str, password: &str| {
            Some(Credential::Basic { user: user.to_owned(), password: password.to_owned() })
        };
        assert_eq!(credentials.find("docker.io").unwrap(), basic("u", "p:q"));
        assert_eq!(credentials.find("old.example").unwrap(), basic("a", "b"));
        let token = Some(Credential::IdentityToken("t".to_owned()));
        assert_eq!(credentials.find("token.example:5000").unwrap(), token);
        assert_eq!(credentials.find("empty.example").unwrap(), None);
        assert_eq!(credentials.find("other.example").unwrap(), None);
        assert!(logout(&credentials, "docker.io").unwrap());
        assert!(!logout(&credentials, "docker.io").unwrap());
        assert_eq!(credentials.find("docker.io").unwrap(), None);
        assert!(credentials.read().unwrap().unwrap().contains_key("HttpHeaders"), "what is not ours stays");
    }

    #[test]
    fn malformed_files_are_told() {
        for bad in ["[]", "{", r#"{"auths":{"a":{"auth":"!"}}}"#, r#"{"auths":{"a":{"auth":"YQ=="}}}"#] {
            let (_folder, credentials) = credentials(bad);
            assert!(credentials.find("a").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let credential = Credential::Basic { user: "u".to_owned(), password: "secret".to_owned() };
        assert!(!format!("{credential:?}").contains("secret"));
    }
}
