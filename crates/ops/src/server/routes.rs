//! The two routers, made from all sections' routes, after checking that no two claim the same.

use std::collections::HashMap;

use axum::{Router, extract::DefaultBodyLimit};
use bytes::Bytes;

use super::{forward::Routers, front::OWN_PATHS};
use crate::{
    ApiError, OpsError, code,
    openapi::{self, Documented},
    section::{Route, Section, Surface},
};

/// A route with the section that brought it.
pub(super) struct Mounted {
    section: &'static str,
    route: Route,
}

/// The routes of all sections.
///
/// # Errors
/// [`OpsError::Route`] when two sections claim one route, or a path is not one that sections may have.
pub(super) fn collect<'a>(
    sections: impl Iterator<Item = &'a dyn Section>,
) -> Result<Vec<Mounted>, OpsError> {
    let mut mounted: Vec<Mounted> = Vec::new();
    let mut shapes: HashMap<(Surface, String), &'static str> = HashMap::new();
    for section in sections {
        for route in section.routes() {
            if let Some(why) = problem(&route, &mounted, &mut shapes) {
                let route = format!(
                    "{} {} ({})",
                    route.method,
                    route.path,
                    route.surface.as_str()
                );
                return Err(OpsError::Route {
                    section: section.name(),
                    route,
                    why,
                });
            }
            mounted.push(Mounted {
                section: section.name(),
                route,
            });
        }
    }
    Ok(mounted)
}

fn problem(
    route: &Route,
    mounted: &[Mounted],
    shapes: &mut HashMap<(Surface, String), &'static str>,
) -> Option<&'static str> {
    if OWN_PATHS.contains(&route.path) {
        return Some("the server answers itself");
    }
    if !route.path.starts_with("/v1/") && route.path != crate::events::STREAM_PATH {
        return Some("does not begin with /v1/");
    }
    let same = |other: &Route| {
        other.surface == route.surface && other.path == route.path && other.method == route.method
    };
    if mounted.iter().any(|mounted| same(&mounted.route)) {
        return Some("another section has");
    }
    // `/a/{x}` and `/a/{y}` cannot stand side by side.
    let shape = route
        .path
        .split('/')
        .map(|part| if part.starts_with('{') { "{}" } else { part });
    let shape = shape.collect::<Vec<_>>().join("/");
    let known = *shapes.entry((route.surface, shape)).or_insert(route.path);
    (known != route.path).then_some("is there with another parameter name")
}

/// The routers of both surfaces.
pub(super) fn routers(mounted: &[Mounted]) -> Routers {
    let router = |surface| {
        let routes = mounted
            .iter()
            .map(|mounted| &mounted.route)
            .filter(|route| route.surface == surface);
        let router = routes.fold(Router::new(), |router, route| {
            router.route(route.path, route.handler.clone())
        });
        // The front has taken the whole body within the limits of this server; axum has one of its own.
        router
            .layer(DefaultBodyLimit::disable())
            .fallback(async || ApiError::new(code::NO_ROUTE, "there is no such route on this API"))
    };
    Routers {
        operator: router(Surface::Operator),
        link: router(Surface::Link),
    }
}

/// The routes of the operator API that take strangers.
pub(super) fn open(mounted: &[Mounted]) -> Vec<Route> {
    let routes = mounted.iter().map(|mounted| &mounted.route);
    routes
        .filter(|route| route.open.is_some() && route.surface == Surface::Operator)
        .cloned()
        .collect()
}

/// The OpenAPI document of all routes.
pub(super) fn document(version: &str, mounted: &[Mounted]) -> Bytes {
    let routes: Vec<Documented<'_>> = mounted
        .iter()
        .map(|Mounted { section, route }| Documented { section, route })
        .collect();
    openapi::document(version, &routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Claims(&'static str, fn() -> Vec<Route>);

    impl Section for Claims {
        fn name(&self) -> &'static str {
            self.0
        }
        fn routes(&self) -> Vec<Route> {
            self.1()
        }
    }

    async fn ok() {}

    fn check(first: fn() -> Vec<Route>, second: fn() -> Vec<Route>) -> Result<usize, String> {
        let sections = [Claims("first", first), Claims("second", second)];
        let mounted = collect(sections.iter().map(|section| section as &dyn Section));
        let mounted = mounted.map_err(|error| error.to_string())?;
        let _no_panic = routers(&mounted);
        Ok(mounted.len())
    }

    #[test]
    fn methods_and_surfaces_share_a_path() {
        let first = || vec![Route::get("/v1/a/{id}", ok), Route::get("/v1/a", ok)];
        let second = || {
            vec![
                Route::post("/v1/a/{id}", ok),
                Route::get("/v1/a/{id}", ok).link(),
            ]
        };
        assert_eq!(check(first, second), Ok(4));
    }

    #[test]
    fn clashes_are_named_with_the_section_that_came_second() {
        let clash = |routes, words: &str| {
            let error = check(|| vec![Route::get("/v1/a/{id}", ok)], routes).unwrap_err();
            assert!(
                error.contains("section `second`") && error.contains(words),
                "{error}"
            );
        };
        clash(
            || vec![Route::get("/v1/a/{id}", ok)],
            "GET /v1/a/{id} (operator), which another section has",
        );
        clash(
            || vec![Route::post("/v1/a/{name}", ok)],
            "is there with another parameter name",
        );
        clash(
            || vec![Route::get("/health", ok)],
            "which the server answers itself",
        );
        clash(
            || vec![Route::get("/fleet", ok)],
            "does not begin with /v1/",
        );
    }
}
