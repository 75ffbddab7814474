//! One registry: requests with whatever proof it asks for, tried again where that may help.

use std::fs::File;
use std::io::Read;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::{Request, Response, StatusCode, header};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body, SendBody};

use super::auth::{Challenge, MAX_TOKEN_BYTES, basic, parse_token, token_request};
use super::credentials::Credential;
use super::resolve::HostResolver;
use super::spec::{RegistriesSpec, is_loopback};
use crate::{Context, DEFAULT_DOMAIN, Error, Kind, Listener, Progress, Result};

/// How long a connection, an answer, and a pause within an answer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a request is tried, and how long the first pause is; each further one is twice as long.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE_MS: u64 = 250;
/// The longest pause that a registry may ask for.
const MAX_PAUSE_MS: u64 = 60_000;
/// As much of a registry's complaint is read.
const MAX_COMPLAINT_BYTES: u64 = 16 << 10;

pub(super) type Answer = Response<Body>;

/// A request.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) method: &'static str,
    /// A path below the registry's root, or a whole URL that the registry has given.
    pub(super) path: &'a str,
    pub(super) headers: &'a [(&'static str, String)],
    pub(super) content: Content<'a>,
}

/// What is sent.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// A file, opened for each try; `seen` is told of each read's bytes.
    File {
        open: &'a dyn Fn() -> Result<File>,
        size: u64,
        seen: &'a dyn Fn(u64),
    },
}

impl<'a> Call<'a> {
    pub(super) fn get(path: &'a str, headers: &'a [(&'static str, String)]) -> Self {
        Self { method: "GET", path, headers, content: Content::Nothing }
    }
}

/// A registry, or a mirror of one.
pub(super) struct Endpoint<'a> {
    /// As the user writes it.
    domain: String,
    /// Host, port and the mirror's path.
    authority: String,
    insecure: bool,
    /// What a mirror's URL says; `None`: what works.
    told_scheme: Option<&'static str>,
    scheme: OnceLock<&'static str>,
    agent: Agent,
    credential: Option<Credential>,
    authorization: Mutex<Option<String>>,
    progress: Listener<'a>,
}

impl Endpoint<'static> {
    /// A registry, with nobody who wants to know about retries.
    pub(super) fn new(
        domain: &str,
        registries: &RegistriesSpec,
        credential: Option<Credential>,
    ) -> Result<Self> {
        Self::with_progress(domain, registries, credential, &crate::progress::silent)
    }
}

impl<'a> Endpoint<'a> {
    /// `domain` is a registry's host and port, or a mirror's URL.
    pub(super) fn with_progress(
        domain: &str,
        registries: &RegistriesSpec,
        credential: Option<Credential>,
        progress: Listener<'a>,
    ) -> Result<Self> {
        let (told_scheme, rest) = match domain.split_once("://") {
            Some(("http", rest)) => (Some("http"), rest),
            Some(("https", rest)) => (Some("https"), rest),
            Some((other, _)) => {
                return Err(Error::new(format!(
                    "registry {domain:?} is reached by {other:?}, not by http or https"
                )));
            }
            None => (None, domain),
        };
        let rest = rest.trim_end_matches('/');
        let host = rest.split('/').next().unwrap_or(rest);
        let insecure = registries.is_insecure(host) || told_scheme == Some("http");
        // Docker's registry answers under a name that is not the one of its images.
        let authority = if rest == DEFAULT_DOMAIN { "registry-1.docker.io" } else { rest };
        let agent = agent(host, registries, insecure)?;
        Ok(Self {
            domain: domain.to_owned(),
            authority: authority.to_owned(),
            insecure,
            told_scheme,
            scheme: OnceLock::new(),
            agent,
            credential,
            authorization: Mutex::new(None),
            progress,
        })
    }

    /// https, unless the registry is insecure and does not speak it.
    fn scheme(&self) -> &'static str {
        if let Some(scheme) = self.told_scheme {
            return scheme;
        }
        if !self.insecure {
            return "https";
        }
        self.scheme.get_or_init(|| {
            let url = format!("https://{}/v2/", self.authority);
            // Whatever it answers, it speaks TLS.
            if self.agent.get(&url).call().is_ok() { "https" } else { "http" }
        })
    }

    fn url(&self, path: &str) -> String {
        if is_whole(path) {
            return path.to_owned();
        }
        format!("{}://{}{path}", self.scheme(), self.authority)
    }

    /// Sends a request; an answer that is no success is an error.
    ///
    /// Errors: [`Kind::NotFound`], [`Kind::Unauthorized`], or whatever kept the registry from answering.
    pub(super) fn send(&self, call: &Call<'_>) -> Result<Answer> {
        let mut asked = false;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let answer = match self.try_send(call) {
                Ok(answer) => answer,
                Err(failure) if failure.transient && attempt < ATTEMPTS => {
                    self.pause(&failure.error, attempt, None);
                    continue;
                }
                Err(failure) => return Err(failure.error).context(|| self.domain.clone()),
            };
            let status = answer.status();
            if status.is_success() {
                return Ok(answer);
            }
            if status == StatusCode::UNAUTHORIZED && !asked {
                asked = true;
                let challenge = challenge(&answer);
                drop(answer);
                self.meet(challenge).context(|| self.domain.clone())?;
                continue;
            }
            let wait_ms = retry_after_ms(&answer);
            let transient = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            let error = complaint(answer);
            if transient && attempt < ATTEMPTS {
                self.pause(&error, attempt, wait_ms);
                continue;
            }
            return Err(error).context(|| self.domain.clone());
        }
    }

    pub(super) fn pause(&self, reason: &Error, attempt: u32, wait_ms: Option<u64>) {
        let after_ms = wait_ms.unwrap_or(FIRST_PAUSE_MS << (attempt - 1).min(8)).min(MAX_PAUSE_MS);
        (self.progress)(Progress::Retry { reason: format!("{}: {reason}", self.domain), after_ms });
        std::thread::sleep(Duration::from_millis(after_ms));
    }

    fn try_send(&self, call: &Call<'_>) -> std::result::Result<Answer, Failure> {
        let mut request = Request::builder().method(call.method).uri(self.url(call.path));
        for (name, value) in call.headers {
            request = request.header(*name, value);
        }
        let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A place that the registry sends us to elsewhere is not told who we are.
        if let Some(authorization) = authorization.filter(|_| self.is_own(call.path)) {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let malformed = |error: ureq::http::Error| Failure::lasting(Error::new(error.to_string()));
        let sent = match call.content {
            Content::Nothing => self.agent.run(request.body(()).map_err(malformed)?),
            Content::Bytes(bytes) => self.agent.run(request.body(bytes).map_err(malformed)?),
            Content::File { open, size, seen } => {
                let mut reader = Counting { file: open().map_err(Failure::lasting)?, seen };
                let request = request.header(header::CONTENT_LENGTH, size);
                self.agent.run(request.body(SendBody::from_reader(&mut reader)).map_err(malformed)?)
            }
        };
        sent.map_err(Failure::of)
    }

    fn is_own(&self, path: &str) -> bool {
        let Some((scheme, rest)) = path.split_once("://").filter(|_| is_whole(path)) else { return true };
        let host = self.authority.split('/').next().unwrap_or_default();
        rest.split('/').next() == Some(host) && (scheme == "https" || self.insecure)
    }

    /// Gets what a challenge asks for; later requests have it.
    fn meet(&self, challenge: Option<Challenge>) -> Result<()> {
        let refused = |what: &str| Error::new(what).with_kind(Kind::Unauthorized);
        let authorization = match challenge {
            None => return Err(refused("it wants a proof of a kind that is not known here")),
            Some(Challenge::Basic) => match &self.credential {
                Some(Credential::Basic { user, password }) => basic(user, password),
                _ => {
                    return Err(refused("it wants a name and a password")
                        .hint(format!("log in first: moat login {}", self.domain)));
                }
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                format!("Bearer {}", self.token(&realm, service.as_deref(), scope.as_deref())?)
            }
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        Ok(())
    }

    fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String> {
        if !realm.starts_with("https://") && !self.insecure {
            return Err(Error::new(format!("its token server {realm:?} is not reached by https"))
                .with_kind(Kind::Unauthorized));
        }
        let wanted = token_request(realm, service, scope, self.credential.as_ref());
        let mut request = Request::builder().uri(&wanted.url);
        if let Some(authorization) = &wanted.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let malformed = |error: ureq::http::Error| Error::new(error.to_string());
        let sent = match &wanted.form {
            None => self.agent.run(request.body(()).map_err(malformed)?),
            Some(form) => {
                let kind = "application/x-www-form-urlencoded";
                let request = request.method("POST").header(header::CONTENT_TYPE, kind);
                self.agent.run(request.body(form).map_err(malformed)?)
            }
        };
        let what = || format!("token server {realm}");
        let answer = sent.map_err(|error| Failure::of(error).error).context(what)?;
        if !answer.status().is_success() {
            return Err(complaint(answer)).context(what);
        }
        parse_token(&read_all(answer, MAX_TOKEN_BYTES)?)
    }

    /// Asks for nothing but whether the credential is right.
    pub(super) fn check_login(&self) -> Result<()> {
        self.send(&Call::get("/v2/", &[])).map(drop)
    }
}

/// Whether this is a URL and no path; a path's query may hold one.
fn is_whole(path: &str) -> bool {
    path.starts_with("http://") || path.starts_with("https://")
}

/// Reads a whole answer of at most `max_bytes`.
pub(super) fn read_all(answer: Answer, max_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = answer.into_body().into_reader().take(max_bytes + 1);
    reader.read_to_end(&mut bytes).context(|| "read the answer")?;
    if bytes.len() as u64 > max_bytes {
        return Err(
            Error::new(format!("the answer is larger than {max_bytes} bytes")).with_kind(Kind::TooLarge)
        );
    }
    Ok(bytes)
}

/// Why there is no answer, and whether another try may bring one.
struct Failure {
    error: Error,
    transient: bool,
}

impl Failure {
    fn lasting(error: Error) -> Self {
        Self { error, transient: false }
    }

    fn of(error: ureq::Error) -> Self {
        use std::io::ErrorKind;
        let transient = match &error {
            ureq::Error::Io(error) => matches!(
                error.kind(),
                ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::BrokenPipe
                    | ErrorKind::TimedOut
                    | ErrorKind::UnexpectedEof
            ),
            ureq::Error::Timeout(_) => true,
            _ => false,
        };
        let error = match error {
            ureq::Error::Io(error) => Error::from(error),
            ureq::Error::Other(error) => match error.downcast::<Error>() {
                Ok(own) => *own,
                Err(error) => Error::new(error.to_string()),
            },
            other => Error::new(other.to_string()),
        };
        Self { error, transient }
    }
}

struct Counting<'a> {
    file: File,
    seen: &'a dyn Fn(u64),
}

impl Read for Counting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        (self.seen)(count as u64);
        Ok(count)
    }
}

fn challenge(answer: &Answer) -> Option<Challenge> {
    let headers = answer.headers().get_all(header::WWW_AUTHENTICATE);
    let mut challenges: Vec<Challenge> =
        headers.iter().filter_map(|header| Challenge::parse(header.to_str().ok()?)).collect();
    // A token is narrower than a password.
    challenges.sort_by_key(|challenge| *challenge == Challenge::Basic);
    challenges.into_iter().next()
}

fn retry_after_ms(answer: &Answer) -> Option<u64> {
    let seconds: u64 = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(seconds.saturating_mul(1000))
}

/// What a registry says when it refuses.
fn complaint(answer: Answer) -> Error {
    let status = answer.status();
    let mut body = Vec::new();
    // The status says enough when the rest can not be read.
    let _ = answer.into_body().into_reader().take(MAX_COMPLAINT_BYTES).read_to_end(&mut body);
    let told = serde_json::from_slice::<serde_json::Value>(&body).ok();
    let text = |field: &str| Some(told.as_ref()?.pointer(field)?.as_str()?.to_owned());
    let message = text("/errors/0/message").or_else(|| text("/message")).or_else(|| text("/details"));
    let mut sentence = format!("it answers {status}");
    if let Some(message) = message.filter(|message| !message.is_empty()) {
        let shown: String = message.chars().filter(|character| !character.is_control()).take(300).collect();
        sentence = format!("{sentence}: {shown}");
    }
    let kind = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Kind::Unauthorized,
        StatusCode::NOT_FOUND => Kind::NotFound,
        _ => Kind::Other,
    };
    Error::new(sentence).with_kind(kind)
}

fn agent(host: &str, registries: &RegistriesSpec, insecure: bool) -> Result<Agent> {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(5)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .user_agent(concat!("moat/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .max_idle_connections_per_host(4)
        .tls_config(tls(host, registries, insecure)?);
    if is_loopback(host) {
        config = config.proxy(None);
    }
    Ok(Agent::with_parts(config.build(), DefaultConnector::default(), HostResolver))
}

/// Which certificates are believed: the machine's, and those that the user has put beside the registry's name.
fn tls(host: &str, registries: &RegistriesSpec, insecure: bool) -> Result<TlsConfig> {
    let mut builder = TlsConfig::builder().disable_verification(insecure);
    let folders = registries.certificates.iter().map(|folder| folder.join(host));
    let (mut roots, mut client, mut key) = (Vec::new(), Vec::new(), None);
    for folder in folders.filter(|folder| folder.is_dir()) {
        let entries = std::fs::read_dir(&folder).context(|| folder.display().to_string())?;
        for entry in entries {
            let path = entry.context(|| folder.display().to_string())?.path();
            let read = || std::fs::read(&path).context(|| path.display().to_string());
            let malformed = |error: ureq::Error| Error::new(format!("{}: {error}", path.display()));
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => roots.extend(certificates(&read()?).map_err(malformed)?),
                Some("cert") => client.extend(certificates(&read()?).map_err(malformed)?),
                Some("key") => key = Some(PrivateKey::from_pem(&read()?).map_err(malformed)?),
                _ => {}
            }
        }
    }
    if let Some(key) = key.filter(|_| !client.is_empty()) {
        builder = builder.client_cert(Some(ClientCert::new_with_certs(&client, key)));
    }
    if !insecure {
        let machine = rustls_native_certs::load_native_certs().certs;
        roots.extend(machine.iter().map(|certificate| Certificate::from_der(certificate).to_owned()));
        // A machine without any has those that the library brings.
        let roots = if roots.is_empty() { RootCerts::WebPki } else { RootCerts::new_with_certs(&roots) };
        builder = builder.root_certs(roots);
    }
    Ok(builder.build())
}

fn certificates(pem: &[u8]) -> std::result::Result<Vec<Certificate<'static>>, ureq::Error> {
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(pem) {
        if let ureq::tls::PemItem::Certificate(certificate) = item? {
            found.push(certificate);
        }
    }
    Ok(found)
}
