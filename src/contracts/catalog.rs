//! All contracts: by name, and by the requests that they match.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use http::Method;
use matchit::Router;

use super::{Contract, template};

/// The paths of one method of one API.
type Methods = (Method, Router<Arc<Contract>>);

/// Every tool that the gateway knows.
#[derive(Debug, Default, Clone)]
pub struct Catalog {
    tools: BTreeMap<String, Arc<Contract>>,
    routes: HashMap<String, Vec<Methods>>,
}

/// The tool that a request means, and the decoded values of its path's parameters.
#[derive(Clone)]
pub struct Matched {
    /// The tool.
    pub contract: Arc<Contract>,
    /// Names and values of the path's parameters.
    pub params: Vec<(String, String)>,
}

impl fmt::Debug for Matched {
    /// The parameters are arguments, and arguments are never logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matched")
            .field("contract", &self.contract)
            .finish_non_exhaustive()
    }
}

/// Why a request means no tool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No tool belongs to an API of this name.
    #[error("there is no such API")]
    UnknownApi,
    /// No tool of the API has this path.
    #[error("the API has no tool with this path")]
    Unknown,
    /// The path is known, but not with this method.
    #[error("the tool at this path is called with another method")]
    MethodNotAllowed {
        /// The methods with which the path is known.
        allowed: Vec<Method>,
    },
    /// The path could be read in two ways.
    #[error("the path is refused: {reason}")]
    BadPath {
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Catalog {
    /// Adds a tool. What cannot be added together with what is there is handed back with the reason.
    pub(super) fn add(&mut self, contract: Arc<Contract>) -> Result<(), String> {
        let routers = self.routes.entry(contract.api.clone()).or_default();
        let known = routers
            .iter_mut()
            .position(|(method, _)| *method == contract.method);
        let index = known.unwrap_or_else(|| {
            routers.push((contract.method.clone(), Router::new()));
            routers.len() - 1
        });
        if let Some((_, router)) = routers.get_mut(index) {
            router
                .insert(&contract.path, Arc::clone(&contract))
                .map_err(|error| error.to_string())?;
        }
        self.tools.insert(contract.name.clone(), contract);
        Ok(())
    }

    /// The tool of this name.
    pub fn tool(&self, name: &str) -> Option<&Arc<Contract>> {
        self.tools.get(name)
    }

    /// All tools, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Contract>> {
        self.tools.values()
    }

    /// How many tools there are.
    pub fn len(&self) -> usize {
        self.tools.len()
    }

    /// Whether there is no tool at all.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// The tool that a request on an API's own paths means. `raw_path` is what follows `/{api}`, still
    /// percent-encoded and without the query string.
    ///
    /// # Errors
    ///
    /// See [`RouteError`].
    pub fn match_request(
        &self,
        api: &str,
        method: &Method,
        raw_path: &str,
    ) -> Result<Matched, RouteError> {
        let routers = self.routes.get(api).ok_or(RouteError::UnknownApi)?;
        if raw_path.is_empty() {
            return Err(RouteError::Unknown);
        }
        let path =
            template::decode_path(raw_path).map_err(|reason| RouteError::BadPath { reason })?;
        let own = routers.iter().find(|(known, _)| known == method);
        if let Some(found) = own.and_then(|(_, router)| router.at(&path).ok()) {
            return Ok(Matched {
                contract: Arc::clone(found.value),
                params: found
                    .params
                    .iter()
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
            });
        }
        let mut allowed: Vec<Method> = routers
            .iter()
            .filter(|(_, router)| router.at(&path).is_ok())
            .map(|(method, _)| method.clone())
            .collect();
        if allowed.is_empty() {
            return Err(RouteError::Unknown);
        }
        allowed.sort_unstable_by(|one, two| one.as_str().cmp(two.as_str()));
        Err(RouteError::MethodNotAllowed { allowed })
    }
}
