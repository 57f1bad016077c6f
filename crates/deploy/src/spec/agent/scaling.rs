//! Resources and the number of replicas.

use crate::spec::{
    codes,
    context::Cx,
    model::{AutoscaleSpec, ResourceSet, Resources, ScalingSpec, defaults},
    quantity::{parse_cpu, parse_memory},
    view::View,
};

pub(super) fn resources(view: View<'_>, cx: &mut Cx<'_>) -> Resources {
    let set = |view: View<'_>| ResourceSet {
        cpu_milli: view.get("cpu").parse(parse_cpu),
        memory: view.get("memory").parse(parse_memory),
        ephemeral_storage: view.get("ephemeral-storage").parse(parse_memory),
    };
    let (limits, requests) = (set(view.get("limits")), set(view.get("requests")));
    let pairs = [
        ("cpu", limits.cpu_milli, requests.cpu_milli),
        ("memory", limits.memory, requests.memory),
        (
            "ephemeral-storage",
            limits.ephemeral_storage,
            requests.ephemeral_storage,
        ),
    ];
    for (key, limit, request) in pairs {
        if limit
            .zip(request)
            .is_some_and(|(limit, request)| request > limit)
        {
            let (high, low) = (view.get("limits").get(key), view.get("requests").get(key));
            let problem = cx.at(
                &codes::CONTRADICTION,
                low.span(),
                format!("the request of {key} is above its limit"),
            );
            let problem = problem.related(&cx.file, high.span(), "the limit is here");
            cx.push(problem);
        }
    }
    Resources { limits, requests }
}

pub(super) fn scaling(spec: View<'_>, over: Option<u32>, cx: &mut Cx<'_>) -> ScalingSpec {
    let view = spec.get("scaling");
    let autoscale = autoscale(spec, cx);
    let replicas = over.or(view.get("replicas").int());
    let unbounded = match autoscale {
        Some(_) => defaults::AUTOSCALE_MAX.max(replicas.unwrap_or(0)),
        None => defaults::MAX_REPLICAS,
    };
    let min = view.get("minReplicas").int().unwrap_or(0);
    let max = view.get("maxReplicas").int().unwrap_or(unbounded.max(min));
    if min > max {
        let span = view.get("minReplicas").span();
        let message = format!("minReplicas {min} is above maxReplicas {max}");
        cx.report(&codes::CONTRADICTION, span, message);
    }
    if let Some(replicas) = replicas.filter(|n| min <= max && !(min..=max).contains(n)) {
        let span = view.get("replicas").span();
        let message = format!("replicas {replicas} is not between {min} and {max}");
        cx.report(&codes::CONTRADICTION, span, message);
    }
    ScalingSpec {
        replicas: replicas.unwrap_or(min.max(1)),
        min,
        max,
        autoscale,
    }
}

/// `scaling.metrics` and `autoscaling` together; where both speak of one resource they must agree.
fn autoscale(spec: View<'_>, cx: &mut Cx<'_>) -> Option<AutoscaleSpec> {
    let auto = spec.get("autoscaling");
    let metrics = spec.get("scaling").get("metrics");
    if !auto.get("enabled").flag(true) || !(auto.is_present() || metrics.items().next().is_some()) {
        return None;
    }
    let mut goal = |name: &str, key: &str| {
        let own = auto.get(key).int();
        let metric = metrics
            .items()
            .map(|item| item.get("resource"))
            .find(|item| item.get("name").text() == Some(name));
        let target = metric.map(|metric| metric.get("target").get("averageUtilization"));
        let listed = target.and_then(View::int);
        if let (Some(own), Some(listed), Some(target)) = (own, listed, target)
            && own != listed
        {
            let message =
                format!("{name} is to reach {listed}% here and {own}% under `spec.autoscaling`");
            cx.report(&codes::CONTRADICTION, target.span(), message);
        }
        own.or(listed)
    };
    let cpu_percent = goal("cpu", "targetCPUUtilizationPercentage");
    let memory_percent = goal("memory", "targetMemoryUtilizationPercentage");
    if cpu_percent.is_none() && memory_percent.is_none() {
        cx.report(
            &codes::MISSING_KEY,
            auto.key(),
            "autoscaling names nothing to aim at",
        );
    }
    Some(AutoscaleSpec {
        cpu_percent,
        memory_percent,
        up_delay: auto.get("scaleUpDelay").duration(defaults::SCALE_UP_DELAY),
        down_delay: auto
            .get("scaleDownDelay")
            .duration(defaults::SCALE_DOWN_DELAY),
    })
}
