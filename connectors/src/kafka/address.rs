//! Where brokers are: `kafka://one:9092,two:9092`.

use std::fmt;
use std::str::FromStr;

/// Brokers by which a cluster is reached; those that are named need not be all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers(Vec<String>);

/// A text that names no brokers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{address}` is no address of Kafka: {problem}. One looks like kafka://one.example:9092,two.example:9092")]
pub struct ParseServersError {
    address: String,
    problem: String,
}

impl FromStr for Servers {
    type Err = ParseServersError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |problem: &str| {
            // What stands before an @ may be a password.
            let address = text.rsplit_once('@').map_or(text.to_owned(), |(_, hosts)| format!("…@{hosts}"));
            ParseServersError { address, problem: problem.to_owned() }
        };
        let hosts = text.strip_prefix("kafka://").ok_or_else(|| wrong("it does not begin with kafka://"))?;
        if hosts.contains('@') {
            return Err(wrong("a user and a password are not supported: brokers have to let this machine in without"));
        }
        let server = |server: &str| {
            let (host, port) = server.rsplit_once(':').ok_or_else(|| wrong(&format!("`{server}` has no port")))?;
            if host.is_empty() || host.contains(['/', ' ']) || port.parse::<u16>().is_err() {
                return Err(wrong(&format!("`{server}` is no host:port")));
            }
            Ok(server.to_owned())
        };
        hosts.trim_end_matches('/').split(',').map(server).collect::<Result<_, _>>().map(Servers)
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_read_and_what_is_none_is_refused() {
        let read = |text: &str| text.parse::<Servers>().map(|servers| servers.to_string());
        assert_eq!(read("kafka://one:9092").as_deref(), Ok("one:9092"));
        assert_eq!(read("kafka://one:9092,[::1]:9093/").as_deref(), Ok("one:9092,[::1]:9093"));
        for text in ["", "one:9092", "kafka://", "kafka://one", "kafka://one:port", "kafka://one:9092,", "kafka://:1"] {
            assert!(read(text).is_err(), "{text}");
        }
        let error = read("kafka://ada:secret@one:9092").expect_err("there is a password").to_string();
        assert!(error.contains("password") && !error.contains("secret"), "{error}");
    }
}
