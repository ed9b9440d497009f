-- Loaded by haproxy. Callers of a slot that nothing serves wait; what its images answer is counted.

local targets = Map.new("targets.map", Map._str)

local function target(stable)
  local side, port = string.match(targets:lookup(stable) or "", "^([ab]):(%d+)")
  return side, tonumber(port or 0)
end

local function now_us()
  local now = core.now()
  return now.sec * 1000000 + now.usec
end

-- Say where a request goes; while that is nowhere, wait. The more callers the slot has, the more seldom each looks.
-- haproxy ends it when the caller hangs up: what is here must not need to be undone.
core.register_action("lead", { "http-req" }, function(txn, stable, seconds)
  local side, port = target(stable)
  local left = tonumber(seconds)
  while port == 0 and left > 0 do
    local pause = math.max(20, txn.f:fe_conn("in-" .. stable) // 5)
    core.msleep(pause)
    left = left - pause / 1000
    side, port = target(stable)
  end
  if port == 0 then return end
  txn:set_var("txn.side", side)
  txn:set_var("txn.port", port)
  txn:set_var("txn.began", tostring(now_us()))
end, 2)

-- Upper edges of the latency bins, as wherry.messages.LATENCY_EDGES_US has them, and one bin without an end.
local edges = {}
for i = 0, 39 do edges[i + 1] = math.floor(100 * 2 ^ (i / 2)) end

local function bin_of(us)
  local low, high = 1, #edges + 1
  while low < high do
    local middle = (low + high) // 2
    if edges[middle] < us then low = middle + 1 else high = middle end
  end
  return low
end

-- By the container's port, which is its own for as long as it lives. The latest few are kept.
local counted, order = {}, {}
local MOST = 64

local function counters_of(key)
  local found = counted[key]
  if found == nil then
    found = { requests = 0, failures = 0, sum = 0, bins = {} }
    for i = 1, #edges + 1 do found.bins[i] = 0 end
    counted[key] = found
    order[#order + 1] = key
    if #order > MOST then counted[table.remove(order, 1)] = nil end
  end
  return found
end

-- Called for every response, also those that haproxy gives in place of an image that did not answer.
core.register_fetches("count", function(txn)
  local began, port = tonumber(txn:get_var("txn.began")), txn:get_var("txn.port")
  if began == nil or port == nil then return "" end
  local found = counters_of(port)
  if txn.f:status() >= 500 then
    found.failures = found.failures + 1
    return ""
  end
  local us = math.max(0, now_us() - began)
  local bin = bin_of(us)
  found.requests, found.sum, found.bins[bin] = found.requests + 1, found.sum + us, found.bins[bin] + 1
  return ""
end)

core.register_cli({ "show", "answers" }, "show answers: what images answered", function(applet)
  for key, found in pairs(counted) do
    applet:send(string.format("%d %d %d %d %s\n", key, found.requests, found.failures, found.sum,
      table.concat(found.bins, ",")))
  end
end)
