//! Who reads, and which writes the answer is to hold.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::consistency::Awaited;
use crate::problem::Problem;
use crate::state::Shared;
use crate::viewer::Viewer;

/// Whoever reads: anyone, or as `Reader<Viewer>` only who is signed in.
pub(crate) struct Reader<V = Option<Viewer>> {
    viewer: V,
    /// What the token is for that came with the request: the answer holds it, or there is none.
    pub must_hold: Option<Awaited>,
    /// What the reader wrote a moment ago: it is waited for.
    pub shall_hold: Option<Awaited>,
}

impl Reader {
    /// The user who is signed in, if one is.
    pub fn id(&self) -> Option<i64> {
        self.viewer.map(|viewer| viewer.0)
    }
}

impl Reader<Viewer> {
    /// The user who is signed in.
    pub fn id(&self) -> i64 {
        self.viewer.0
    }
}

impl<V: FromRequestParts<Shared, Rejection = Problem> + Copy + Into<Option<Viewer>>> FromRequestParts<Shared>
    for Reader<V>
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Self, Problem> {
        let viewer = V::from_request_parts(parts, context).await?;
        let id = viewer.into().map(|viewer| viewer.0);
        Ok(Reader {
            viewer,
            must_hold: context.asked_for(&parts.headers)?,
            shall_hold: context.own_write(id, &parts.headers),
        })
    }
}
