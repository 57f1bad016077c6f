//! The server's own section: its OpenAPI document and the snapshots of all sections.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use axum::{http::header, response::IntoResponse as _};
use bytes::Bytes;
use serde_json::Value;

use crate::{
    ApiError, Json, code,
    section::{Route, Section},
};

/// See the module.
#[derive(Clone, Default)]
pub(super) struct OwnSection {
    document: Arc<OnceLock<Bytes>>,
    sections: Arc<OnceLock<Vec<Arc<dyn Section>>>>,
}

impl OwnSection {
    /// Fills in what is known only once all routes are.
    pub(super) fn complete(&self, document: Bytes, sections: Vec<Arc<dyn Section>>) {
        let _set_once = self.document.set(document);
        let _set_once = self.sections.set(sections);
    }

    fn openapi(&self) -> Route {
        let document = self.document.clone();
        let handler = async move || match document.get() {
            Some(document) => (
                [(header::CONTENT_TYPE, "application/json")],
                document.clone(),
            )
                .into_response(),
            None => {
                ApiError::new(code::UNRESPONSIVE, "the document is not ready yet").into_response()
            }
        };
        Route::get("/v1/openapi.json", handler).summary("This document")
    }

    fn inspect(&self) -> Route {
        let sections = self.sections.clone();
        let handler = async move || {
            let sections = sections.get().into_iter().flatten();
            let snapshots = sections.map(|section| (section.name(), section.snapshot()));
            Json(
                snapshots
                    .filter(|(_, value)| !value.is_null())
                    .collect::<BTreeMap<&str, Value>>(),
            )
        };
        Route::get("/v1/inspect", handler)
            .summary("The state of every part of the node, by part")
            .gives::<BTreeMap<String, Value>>()
    }
}

impl Section for OwnSection {
    fn name(&self) -> &'static str {
        "ops"
    }

    fn routes(&self) -> Vec<Route> {
        vec![self.openapi(), self.openapi().link(), self.inspect()]
    }
}
