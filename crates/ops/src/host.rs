//! Which `Host` headers the TCP side answers to. Pure.
//!
//! A web page may not read an answer of ours, but a name of its own that is made to resolve to 127.0.0.1 (DNS
//! rebinding) would make us its origin. Names are therefore refused unless they are ours; literal addresses cannot be
//! rebound.

use std::net::IpAddr;

/// The host of a `Host` header or an authority, without its port.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.contains(':') =>
        {
            name
        }
        _ => host,
    }
}

/// Whether a request to `local` that names `host` is meant for us.
pub(crate) fn allowed(host: &str, local: IpAddr, names: &[String]) -> bool {
    let host = without_port(host.trim());
    if let Ok(address) = host.parse::<IpAddr>() {
        return address.is_loopback() || address.to_canonical() == local.to_canonical();
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || names.iter().any(|name| name.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, expected: bool) {
        let local = "10.1.2.3".parse().unwrap();
        assert_eq!(
            allowed(host, local, &["ops.example".to_owned()]),
            expected,
            "{host}"
        );
    }

    #[test]
    fn our_own_names_and_addresses_pass() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:7070",
            "127.8.8.8",
            "[::1]:7070",
            "::1",
            "10.1.2.3:1",
        ] {
            check(host, true);
        }
        check("ops.example:443", true);
        check("ops.example.", true);
    }

    #[test]
    fn other_names_and_addresses_do_not() {
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.1.2.4",
            "",
            "[",
            "a:b:c",
        ] {
            check(host, false);
        }
    }
}
