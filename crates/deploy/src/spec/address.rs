//! Addresses: IP addresses, hosts, what may be reached, URLs of probes. Pure.

use std::net::{IpAddr, SocketAddr};

use super::{
    port::parse_port,
    rules::{Bad, bad, clip},
};

pub(crate) fn ip(text: &str) -> Result<(), Bad> {
    match text.parse::<IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => bad(format!("must be an IP address, found `{}`", clip(text))),
    }
}

pub(crate) fn host(text: &str) -> Result<(), Bad> {
    let label = |part: &str| {
        (1..=63).contains(&part.len())
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label)) {
        return Ok(());
    }
    bad(format!(
        "must be a host name or IP address, found `{}`",
        clip(text)
    ))
}

pub(crate) fn host_rule(text: &str) -> Result<(), Bad> {
    let wrong = |hint: Option<String>| {
        let message = format!(
            "must be a host, `*.domain`, address or network, each with `:port` or not, found `{}`",
            clip(text)
        );
        Err(Bad { message, hint })
    };
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split('/').next().unwrap_or_default();
        return wrong(Some(format!("write the host alone: `{}`", clip(host))));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    if let Some((address, bits)) = text.split_once('/') {
        let max = address
            .parse::<IpAddr>()
            .map(|ip| if ip.is_ipv4() { 32 } else { 128 });
        return match (max, bits.parse::<u8>()) {
            (Ok(max), Ok(bits)) if bits <= max => Ok(()),
            _ => wrong(None),
        };
    }
    let (name, port) = text
        .rsplit_once(':')
        .map_or((text, None), |(name, port)| (name, Some(port)));
    let name = name.strip_prefix("*.").unwrap_or(name);
    match host(name).is_ok() && port.is_none_or(|port| parse_port(port).is_ok()) {
        true => Ok(()),
        false => wrong(None),
    }
}

pub(crate) fn bind(text: &str) -> Result<(), Bad> {
    match text.parse::<SocketAddr>() {
        Ok(_) => Ok(()),
        Err(_) => bad(format!(
            "must be an IP address with a port like 127.0.0.1:0, found `{}`",
            clip(text)
        )),
    }
}

/// `host:port`, both given, as a connection is made to.
pub(crate) fn dial(text: &str) -> Result<(), Bad> {
    let wrong = || {
        bad(format!(
            "must be a host with a port like node-b.example.org:7400, found `{}`",
            clip(text)
        ))
    };
    if text
        .parse::<SocketAddr>()
        .is_ok_and(|address| address.port() != 0)
    {
        return Ok(());
    }
    match text.rsplit_once(':') {
        Some((name, port)) if host(name).is_ok() && parse_port(port).is_ok() => Ok(()),
        _ => wrong(),
    }
}

/// Whether a `host:port` is this machine for certain.
pub(crate) fn is_loopback(text: &str) -> bool {
    match text.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => text
            .rsplit_once(':')
            .is_some_and(|(name, _)| name == "localhost"),
    }
}

pub(crate) fn url_path(text: &str) -> Result<(), Bad> {
    match text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(()),
        false => bad(format!(
            "must be a path beginning with `/`, found `{}`",
            clip(text)
        )),
    }
}

/// `http://host:port/path` as host, port and path.
pub(crate) fn parse_url(text: &str) -> Result<(String, u16, String), Bad> {
    let wrong = || {
        bad(format!(
            "must be a URL like http://127.0.0.1:8080/health, found `{}`",
            clip(text)
        ))
    };
    if text.starts_with("https://") {
        return bad(
            "must be plain http: probes go to the agent itself and do not check certificates",
        );
    }
    let Some(rest) = text.strip_prefix("http://") else {
        return wrong();
    };
    let (authority, tail) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) => (name, parse_port(port).map_err(Bad::from)?),
        None => (authority, 80),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if host(name).is_err() || url_path(tail).is_err() {
        return wrong();
    }
    Ok((name.to_owned(), port, tail.to_owned()))
}

/// Whether it is `https`, host, port, and path with query, of a URL to post to.
pub(crate) fn parse_target(text: &str) -> Result<(bool, String, u16, String), Bad> {
    let wrong = || {
        bad(format!(
            "must be a URL like https://example.org/hook without a user, found `{}`",
            clip(text)
        ))
    };
    let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return wrong(),
    };
    let (authority, tail) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    if authority.contains('@') {
        return bad("must hold no user and no password: credentials come by reference");
    }
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, parse_port(port).map_err(Bad::from)?),
        _ => (authority, if tls { 443 } else { 80 }),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if host(name).is_err()
        || !tail
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#')
    {
        return wrong();
    }
    Ok((tls, name.to_owned(), port, tail.to_owned()))
}

/// `port` or `host:port`; the host is 127.0.0.1 if not given.
pub(crate) fn parse_host_port(text: &str) -> Result<(String, u16), Bad> {
    let (name, port) = text.rsplit_once(':').unwrap_or(("127.0.0.1", text));
    let name = name.trim_start_matches('[').trim_end_matches(']');
    host(name)?;
    Ok((name.to_owned(), parse_port(port)?))
}

pub(crate) fn header(text: &str) -> Result<(), Bad> {
    match text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        true => Ok(()),
        false => bad("must be one line of plain ASCII"),
    }
}
