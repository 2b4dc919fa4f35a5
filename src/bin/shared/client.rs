//! What both client programs can be told about their connection.

use std::path::PathBuf;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::uri::Uri;
use httpfstream::client::Client;
use httpfstream::{Error, ErrorKind, Result};

/// The options of a client program.
#[derive(clap::Args, Debug)]
pub(crate) struct ClientArgs {
    /// Say on stderr what happens
    #[arg(short, long, env = "HTTPFSTREAM_VERBOSE")]
    pub(crate) verbose: bool,

    /// A header of the request, "Name: value"; may be repeated
    #[arg(short = 'H', long, value_name = "HEADER", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,

    /// A bearer token; better given by the environment, which other users can't see
    #[arg(long, env = "HTTPFSTREAM_TOKEN", hide_env_values = true, value_parser = bearer)]
    token: Option<HeaderValue>,

    /// A file of PEM certificates to trust beside the system's
    #[arg(long, value_name = "FILE", env = "HTTPFSTREAM_CA_FILE")]
    ca_file: Option<PathBuf>,

    /// Seconds that connecting may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10, env = "HTTPFSTREAM_CONNECT_TIMEOUT")]
    connect_timeout: u32,

    /// Where the resource is: http://, https://, ws:// or wss://
    #[arg(value_parser = url)]
    pub(crate) url: Uri,
}

impl ClientArgs {
    /// The client that was asked for.
    pub(crate) fn client(&self) -> Result<Client> {
        let mut builder = Client::builder().connect_timeout(Duration::from_secs(self.connect_timeout.into()));
        if let Some(token) = &self.token {
            builder = builder.header(AUTHORIZATION, token.clone());
        }
        for (name, value) in &self.header {
            builder = builder.header(name.clone(), value.clone());
        }
        if let Some(file) = &self.ca_file {
            let certificates = std::fs::read(file).map_err(|error| {
                let detail = format!("{} can't be read", file.display());
                Error::new(ErrorKind::BadRequest).with_detail(detail).with_source(error)
            })?;
            builder = builder.root_certificate(certificates);
        }
        builder.build()
    }
}

fn url(given: &str) -> Result<Uri, String> {
    let uri: Uri = given.parse().map_err(|error| format!("{error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https" | "ws" | "wss"), Some(_)) => Ok(uri),
        _ => Err("it has to begin with http://, https://, ws:// or wss:// and a host".to_owned()),
    }
}

fn header(given: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = given.split_once(':').ok_or("it has to be \"Name: value\"")?;
    let name = name.trim().parse().map_err(|error| format!("{error}"))?;
    let mut value: HeaderValue = value.trim().parse().map_err(|error| format!("{error}"))?;
    value.set_sensitive(true);
    Ok((name, value))
}

fn bearer(token: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|error| format!("{error}"))?;
    value.set_sensitive(true);
    Ok(value)
}
