//! The rule: which token opens which surface. Pure; secrets are compared in constant time.

use axum::http::{HeaderMap, Method, Uri, header, uri::PathAndQuery};
use subtle::ConstantTimeEq as _;
use volary_kernel::secret::Secret;

use super::{TokenTable, token::OPERATOR_PREFIX};
use crate::{ApiError, Principal, code, section::Surface};

/// Name of the query parameter that may carry the operator token of a `GET`.
const PARAMETER: &str = "token";

/// What a request shows for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Presented {
    /// No token at all.
    Nothing,
    /// A token where it may be.
    Token(Secret),
    /// A token where it does not count; the text says why.
    Misplaced(&'static str),
}

/// The token of a request: a bearer header, or `?token=` for a `GET` on the operator API.
pub(crate) fn present(
    surface: Surface,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Presented {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    if let Some(value) = values.next() {
        if values.next().is_some() {
            return Presented::Misplaced("there are several Authorization headers");
        }
        let bearer = value
            .to_str()
            .ok()
            .and_then(|text| text.trim().split_once(' '));
        return match bearer {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Presented::Token(Secret::new(token.trim()))
            }
            _ => Presented::Misplaced("the Authorization header is not of the form `Bearer TOKEN`"),
        };
    }
    let token = uri.query().and_then(|query| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix("token="))
    });
    match token {
        None => Presented::Nothing,
        Some(_) if surface == Surface::Link => {
            Presented::Misplaced("the link API takes no token in the URL")
        }
        Some(_) if method != Method::GET && method != Method::HEAD => {
            Presented::Misplaced("a token in the URL opens GET only")
        }
        Some(token) => Presented::Token(Secret::new(token)),
    }
}

/// `uri` without the token parameter, so that no handler, log or error text can show it.
pub(crate) fn strip_token(uri: &Uri) -> Uri {
    let Some(query) = uri.query().filter(|query| query.contains(PARAMETER)) else {
        return uri.clone();
    };
    let is_token = |pair: &&str| pair.split('=').next() == Some(PARAMETER);
    let rest: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
    let text = if rest.is_empty() {
        uri.path().to_owned()
    } else {
        format!("{}?{}", uri.path(), rest.join("&"))
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = text.parse::<PathAndQuery>().ok();
    Uri::from_parts(parts).unwrap_or_else(|_| Uri::from_static("/"))
}

/// Who asks, or why not, with the reason under which it is counted.
pub(crate) fn authenticate(
    surface: Surface,
    presented: &Presented,
    operator: &Secret,
    links: &TokenTable,
) -> Result<Principal, (&'static str, ApiError)> {
    let token = match presented {
        Presented::Nothing => {
            return Err((
                "missing",
                ApiError::new(code::TOKEN_MISSING, "no token was given"),
            ));
        }
        Presented::Misplaced(why) => {
            return Err(("misplaced", ApiError::new(code::TOKEN_MISSING, *why)));
        }
        Presented::Token(token) => token.expose(),
    };
    let is_operator = bool::from(operator.expose().as_bytes().ct_eq(token.as_bytes()));
    let wrong_kind = |message| Err(("wrong_kind", ApiError::new(code::TOKEN_KIND, message)));
    match (surface, is_operator, links.peer(token)) {
        (Surface::Operator, true, _) => Ok(Principal::Operator),
        (Surface::Link, false, Some(peer)) => Ok(Principal::Link(peer)),
        (Surface::Link, true, _) => {
            wrong_kind("an operator token does not open the link API: it has no sender")
        }
        (Surface::Operator, false, Some(_)) => {
            wrong_kind("a link token does not open the operator API")
        }
        (_, false, None) => {
            let looks = if token.starts_with(OPERATOR_PREFIX) {
                "the operator token"
            } else {
                "the token"
            };
            Err((
                "unknown",
                ApiError::new(code::TOKEN_UNKNOWN, format!("{looks} is not valid here")),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;
    use crate::LinkPeer;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append(header::AUTHORIZATION, value.parse().unwrap());
        }
        map
    }

    fn token(text: &str) -> Presented {
        Presented::Token(Secret::new(text))
    }

    #[test]
    fn tokens_are_found_where_they_may_be_and_only_there() {
        let (operator, link) = (Surface::Operator, Surface::Link);
        let uri = Uri::from_static("/events?from=1&token=abc");
        assert_eq!(
            present(operator, &Method::GET, &uri, &HeaderMap::new()),
            token("abc")
        );
        assert!(matches!(
            present(operator, &Method::POST, &uri, &HeaderMap::new()),
            Presented::Misplaced(_)
        ));
        assert!(matches!(
            present(link, &Method::GET, &uri, &HeaderMap::new()),
            Presented::Misplaced(_)
        ));
        let plain = Uri::from_static("/events");
        assert_eq!(
            present(operator, &Method::POST, &plain, &headers(&["bEaReR  xyz"])),
            token("xyz")
        );
        assert_eq!(
            present(link, &Method::GET, &plain, &HeaderMap::new()),
            Presented::Nothing
        );
        for wrong in [
            ["Basic xyz"].as_slice(),
            &["xyz"],
            &["Bearer a", "Bearer b"],
        ] {
            let presented = present(operator, &Method::GET, &uri, &headers(wrong));
            assert!(matches!(presented, Presented::Misplaced(_)), "{wrong:?}");
        }
    }

    #[test]
    fn a_token_in_the_url_is_taken_out() {
        let check = |uri: &'static str, expected: &str| {
            assert_eq!(strip_token(&Uri::from_static(uri)).to_string(), expected);
        };
        check("/events?from=1&token=abc&kind=a", "/events?from=1&kind=a");
        check("/events?token=abc", "/events");
        check("/events?token", "/events");
        check(
            "http://localhost:1/x?token=a&tokens=2",
            "http://localhost:1/x?tokens=2",
        );
        check("/events", "/events");
    }

    #[test]
    fn each_surface_takes_its_own_kind_of_token_only() {
        let links = TokenTable::default();
        let name = |text: &str| text.parse().unwrap();
        let peer = LinkPeer {
            tenant: volary_kernel::Tenant::default(),
            agent: name("a"),
            replica: name("a-0"),
        };
        let link = links.issue(peer.clone()).unwrap();
        let operator = Secret::new("vop_0123456789");
        let check =
            |surface, presented: Presented| authenticate(surface, &presented, &operator, &links);
        let refused = |surface, presented| {
            let (reason, error) = check(surface, presented).unwrap_err();
            (reason, error.status, error.code)
        };
        let own = |secret: &Secret| Presented::Token(secret.clone());
        assert_eq!(
            check(Surface::Operator, own(&operator)).unwrap(),
            Principal::Operator
        );
        assert_eq!(
            check(Surface::Link, own(&link)).unwrap(),
            Principal::Link(peer)
        );
        let kind = ("wrong_kind", StatusCode::FORBIDDEN, "V6003".into());
        assert_eq!(refused(Surface::Operator, own(&link)), kind);
        assert_eq!(refused(Surface::Link, own(&operator)), kind);
        for surface in [Surface::Operator, Surface::Link] {
            let unknown = ("unknown", StatusCode::UNAUTHORIZED, "V6002".into());
            assert_eq!(refused(surface, token("vop_")), unknown);
            let missing = ("missing", StatusCode::UNAUTHORIZED, "V6001".into());
            assert_eq!(refused(surface, Presented::Nothing), missing);
        }
    }
}
