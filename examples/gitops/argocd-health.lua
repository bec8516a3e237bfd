-- Health of a DedicatedEndpoint for Argo CD: resource.customizations.health.dedicate.dev_DedicatedEndpoint in argocd-cm.
-- What comes about by itself is Progressing; every other reason needs somebody, and is Degraded.
local progressing = {
  Starting = true, RollingOut = true, Draining = true, AwaitingGPU = true, NotAdmitted = true,
  NotStarted = true, Downloading = true, WaitingForModel = true,
}
local resting = { Suspended = true, ScaledToZero = true }

local status = obj.status or {}
if (status.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return { status = "Progressing", message = "The operator has not seen this specification yet." }
end
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then
    local health = { message = condition.reason .. ": " .. (condition.message or "") }
    if condition.status == "True" then
      health.status = "Healthy"
    elseif resting[condition.reason] then
      health.status = "Suspended"
    elseif progressing[condition.reason] then
      health.status = "Progressing"
    else
      health.status = "Degraded"
    end
    return health
  end
end
return { status = "Progressing", message = "The operator has not told of it yet." }
