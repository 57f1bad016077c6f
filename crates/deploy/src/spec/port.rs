//! Ports in their short form. Pure.

use std::net::{IpAddr, Ipv4Addr};

use super::model::{PortSpec, Protocol};

/// What is wrong, and a hint.
type Wrong = (String, Option<String>);

/// Reads a port number from 1 to 65535.
///
/// # Errors
/// What was expected and found.
pub(crate) fn parse_port(text: &str) -> Result<u16, Wrong> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err((
            format!(
                "must be a port from 1 to 65535, found `{}`",
                super::rules::clip(text)
            ),
            None,
        )),
    }
}

/// Reads `8080`, `80:8080`, `127.0.0.1:80:8080`, `[::1]:80:8080`, each with `/tcp` or `/udp` behind it or not.
///
/// # Errors
/// What was expected and found.
pub(crate) fn parse_short_port(text: &str) -> Result<PortSpec, Wrong> {
    let (numbers, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((numbers, protocol)) => (numbers, parse_protocol(protocol)?),
    };
    let wrong = || {
        let form = "must be `port`, `host:container` or `address:host:container`, with /tcp or /udp behind it or not";
        (
            format!("{form}, found `{}`", super::rules::clip(text)),
            None,
        )
    };
    if numbers.contains('-') {
        return Err((
            wrong().0,
            Some("port ranges are not supported: list each port".into()),
        ));
    }
    let (address, pair) = match split_address(numbers) {
        Some((address, pair)) => (address.parse().map_err(|_| wrong())?, pair),
        None => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), numbers),
    };
    let (host, container) = pair.split_once(':').unwrap_or((pair, pair));
    Ok(PortSpec {
        container: parse_port(container)?,
        host: parse_port(host)?,
        address,
        protocol,
    })
}

/// The address before the last two numbers, if there is one.
fn split_address(text: &str) -> Option<(&str, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, pair) = rest.split_once("]:")?;
        return Some((address, pair));
    }
    let mut colons = text.rmatch_indices(':');
    colons.next()?;
    let (at, _) = colons.next()?;
    Some((&text[..at], &text[at + 1..]))
}

fn parse_protocol(text: &str) -> Result<Protocol, Wrong> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err((
            format!(
                "protocol must be tcp or udp, found `{}`",
                super::rules::clip(text)
            ),
            None,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let found = parse_short_port(text)
            .map(|p| format!("{} {}->{}/{}", p.address, p.host, p.container, p.protocol));
        assert_eq!(found.as_deref().unwrap_or("refused"), expected, "{text}");
    }

    #[test]
    fn short_ports_are_read_with_address_and_protocol() {
        check("8080", "0.0.0.0 8080->8080/tcp");
        check("80:8080", "0.0.0.0 80->8080/tcp");
        check("8080:8080/udp", "0.0.0.0 8080->8080/udp");
        check("8080:8080/TCP", "0.0.0.0 8080->8080/tcp");
        check("127.0.0.1:8080:80", "127.0.0.1 8080->80/tcp");
        check("[::1]:8086:8080", "::1 8086->8080/tcp");
    }

    #[test]
    fn short_ports_that_make_no_sense_are_refused() {
        for text in [
            "",
            "0",
            "70000:80",
            "80:65536",
            "-1:80",
            "a:80",
            "80:b",
            "1e3:80",
            "+80:80",
            "80:80/sctp",
            "80:80/",
            "80/tcp/udp",
            "localhost:80:80",
            "9000-9002:8080",
            "80:0",
        ] {
            check(text, "refused");
        }
    }
}
