//! How the address of a database is read: a URL or `key=value` pairs, as libpq takes them.
//!
//! tokio-postgres reads both forms but knows neither all of `sslmode` nor the files, and refuses what it does not know.
//! So these options are taken out first, and it reads the rest. What the address does not say is taken from the
//! variables that libpq users set, where they concern security: `PGSSLMODE`, `PGSSLROOTCERT`, `PGSSLCERT`, `PGSSLKEY`,
//! `PGPASSWORD`, `PGPASSFILE`.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::SslNegotiation;

use super::super::error::with_causes;
use super::super::tls::{Root, SslMode, TlsSettings};

/// What an address says.
pub(super) struct Address {
    pub config: Config,
    pub tls: TlsSettings,
    /// Where passwords are looked up if the address has none.
    pub passfile: Option<PathBuf>,
}

/// The options that tokio-postgres does not know, or not fully.
const OURS: [&str; 6] = ["sslmode", "ssl", "sslrootcert", "sslcert", "sslkey", "passfile"];

type Pairs = Vec<(String, String)>;

/// Reads an address; `variable` gives environment variables. The problem never repeats a value that may be secret.
pub(super) fn read(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Address, String> {
    let (rest, ours) = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        split_url(text)?
    } else {
        split_pairs(text)?
    };
    let mut config: Config = rest.parse().map_err(|error| with_causes(&error))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err("it names no host".to_owned());
    }
    let given = |name: &str| ours.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let option = |name: &str, of_environment: &str| {
        given(name).or_else(|| variable(of_environment)).filter(|value| !value.is_empty())
    };
    let root = match option("sslrootcert", "PGSSLROOTCERT") {
        None => Root::Default,
        Some(value) if value == "system" => Root::System,
        Some(file) => Root::File(file.into()),
    };
    let mode = match option("sslmode", "PGSSLMODE") {
        Some(mode) => mode.parse()?,
        None if given("ssl").as_deref() == Some("true") => SslMode::Require,
        None if root == Root::System => SslMode::VerifyFull,
        None => SslMode::Prefer,
    };
    if root == Root::System && mode != SslMode::VerifyFull {
        return Err(format!(
            "sslrootcert=system trusts whoever a public authority vouches for, so it needs sslmode=verify-full, not {mode}"
        ));
    }
    let direct = config.get_ssl_negotiation() == SslNegotiation::Direct;
    if direct && mode < SslMode::Require {
        return Err(format!("sslnegotiation=direct needs sslmode=require or stronger, not {mode}"));
    }
    let home = variable("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    if let (None, Some(password)) = (config.get_password(), variable("PGPASSWORD")) {
        config.password(password);
    }
    let passfile = option("passfile", "PGPASSFILE").map(PathBuf::from);
    let tls = TlsSettings {
        mode,
        root,
        certificate: option("sslcert", "PGSSLCERT").map(PathBuf::from),
        key: option("sslkey", "PGSSLKEY").map(PathBuf::from),
        defaults: home.as_ref().map(|home| home.join(".postgresql")),
        direct,
    };
    Ok(Address { config, tls, passfile: passfile.or_else(|| home.map(|home| home.join(".pgpass"))) })
}

/// The URL without our options, and those.
fn split_url(text: &str) -> Result<(String, Pairs), String> {
    // As tokio-postgres reads it: up to the first @ are user and password, in which anything may stand.
    let query_at = text.find('@').unwrap_or(0);
    let Some(query_at) = text.char_indices().find(|(at, c)| *at >= query_at && *c == '?').map(|(at, _)| at) else {
        return Ok((text.to_owned(), Vec::new()));
    };
    let (head, query) = text.split_at(query_at);
    let (mut kept, mut ours) = (Vec::new(), Vec::new());
    for pair in query.trim_start_matches('?').split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or("an option after `?` has no value")?;
        if OURS.contains(&key) {
            let value = percent_decode_str(value).decode_utf8().map_err(|_| format!("{key} is not UTF-8"))?;
            ours.push((key.to_owned(), value.into_owned()));
        } else {
            kept.push(pair);
        }
    }
    let rest = if kept.is_empty() { head.to_owned() } else { format!("{head}?{}", kept.join("&")) };
    Ok((rest, ours))
}

/// The `key=value` pairs without our options, and those.
fn split_pairs(text: &str) -> Result<(String, Pairs), String> {
    let mut rest = String::new();
    let mut ours = Vec::new();
    let mut text = text.chars().peekable();
    loop {
        while text.next_if(|c| c.is_whitespace()).is_some() {}
        if text.peek().is_none() {
            return Ok((rest, ours));
        }
        let mut key = String::new();
        while let Some(c) = text.next_if(|c| !c.is_whitespace() && *c != '=') {
            key.push(c);
        }
        while text.next_if(|c| c.is_whitespace()).is_some() {}
        // What follows a missing `=` may be part of a password.
        text.next_if_eq(&'=').ok_or("a word has no `=` after it (a value with a space stands in 'quotes')")?;
        while text.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = text.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match text.next_if(|c| if quoted { *c != '\'' } else { !c.is_whitespace() }) {
                Some('\\') => value.extend(text.next()),
                Some(c) => value.push(c),
                None => break,
            }
        }
        if quoted && text.next().is_none() {
            return Err(format!("the value of {key} has no closing quote"));
        }
        if OURS.contains(&key.as_str()) {
            ours.push((key, value));
        } else {
            let value = value.replace('\\', "\\\\").replace('\'', "\\'");
            rest += &format!("{key}='{value}' ");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    fn problem(text: &str, variable: impl Fn(&str) -> Option<String>) -> String {
        read(text, variable).err().unwrap_or_else(|| panic!("{text} was read"))
    }

    #[test]
    fn tls_options_are_read_from_both_forms() {
        for (text, mode, root) in [
            ("postgres://a@h/d", SslMode::Prefer, Root::Default),
            ("postgres://a@h/d?sslmode=disable", SslMode::Disable, Root::Default),
            ("postgres://a@h/d?connect_timeout=3&sslmode=allow", SslMode::Allow, Root::Default),
            ("postgres://a@h/d?ssl=true", SslMode::Require, Root::Default),
            ("postgres://a:p?w@h?sslmode=verify-ca&sslrootcert=%2Fca%20x.pem", SslMode::VerifyCa, file("/ca x.pem")),
            ("host=h user=a sslmode = 'verify-full' sslrootcert='/c\\'a'", SslMode::VerifyFull, file("/c'a")),
            ("postgres://a@h/d?sslrootcert=system", SslMode::VerifyFull, Root::System),
            ("host=h sslmode=require sslnegotiation=direct", SslMode::Require, Root::Default),
        ] {
            let address = read(text, none).unwrap_or_else(|problem| panic!("{text}: {problem}"));
            assert_eq!((address.tls.mode, address.tls.root), (mode, root), "{text}");
        }
    }

    fn file(path: &str) -> Root {
        Root::File(path.into())
    }

    #[test]
    fn what_is_not_ours_is_left_as_it_is() {
        let address = read("host=h user='a b' password='x\\'y\\\\z ' sslkey=k sslcert=c dbname=d", none).ok().unwrap();
        assert_eq!(address.config.get_user(), Some("a b"));
        assert_eq!(address.config.get_password(), Some(b"x'y\\z ".as_slice()));
        assert_eq!((address.tls.certificate, address.tls.key), (Some("c".into()), Some("k".into())));
        let address = read("postgres://a:p%40%26w@h:7/d?sslcert=c&application_name=x%20y", none).ok().unwrap();
        assert_eq!(address.config.get_password(), Some(b"p@&w".as_slice()));
        assert_eq!(address.config.get_application_name(), Some("x y"));
    }

    #[test]
    fn variables_stand_in_for_what_the_address_does_not_say() {
        let variables = |name: &str| {
            let value = match name {
                "PGSSLMODE" => "verify-full",
                "PGSSLROOTCERT" => "/ca",
                "PGPASSWORD" => "s3cret",
                "HOME" => "/home/ada",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let address = read("postgres://a@h/d", variables).ok().unwrap();
        assert_eq!((address.tls.mode, address.tls.root), (SslMode::VerifyFull, file("/ca")));
        assert_eq!(address.config.get_password(), Some(b"s3cret".as_slice()));
        assert_eq!(address.passfile, Some("/home/ada/.pgpass".into()));
        let address = read("postgres://a:mine@h/d?sslmode=require&passfile=/p", variables).ok().unwrap();
        assert_eq!(address.tls.mode, SslMode::Require);
        assert_eq!(address.config.get_password(), Some(b"mine".as_slice()));
        assert_eq!(address.passfile, Some("/p".into()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_without_repeating_the_password() {
        for (text, part) in [
            ("postgres://ada:s3cret@h/d?nonsense=1", "nonsense"),
            ("postgres://ada:s3cret@h/d?sslmode=on", "verify-full"),
            ("postgres://ada:s3cret@h/d?sslmode=require&sslrootcert=system", "verify-full"),
            ("host=h password=s3cret sslnegotiation=direct", "sslmode=require"),
            ("host=h password='s3cret", "closing quote"),
            ("host=h password=my s3cret", "="),
            ("user=ada password=s3cret", "host"),
        ] {
            let problem = problem(text, none);
            assert!(problem.contains(part) && !problem.contains("s3cret"), "{text}: {problem}");
        }
    }
}
