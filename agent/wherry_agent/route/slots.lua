-- Loaded by haproxy. Callers of a slot that nothing serves wait; what its images answer is counted.

local waiting = 0

-- Wait until the slot has a server, or so many seconds. The more wait, the more seldom each looks.
core.register_action("hold", { "http-req" }, function(txn, seconds)
  local left = tonumber(seconds)
  waiting = waiting + 1
  while left > 0 and txn.f:nbsrv() == 0 do
    local pause = math.max(20, waiting // 5)
    core.msleep(pause)
    left = left - pause / 1000
  end
  waiting = waiting - 1
end, 1)

-- Upper edges of the latency bins, as wherry.messages.LATENCY_EDGES_US has them, and one bin without an end.
local edges = {}
for i = 0, 39 do edges[i + 1] = math.floor(100 * 2 ^ (i / 2)) end

local function now_us()
  local now = core.now()
  return now.sec * 1000000 + now.usec
end

local function bin_of(us)
  local low, high = 1, #edges + 1
  while low < high do
    local middle = (low + high) // 2
    if edges[middle] < us then low = middle + 1 else high = middle end
  end
  return low
end

-- By server address within a slot: an address stands for one container as long as it serves. The latest few are kept.
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

-- When the image was asked, so that waiting for it to come is not its latency.
core.register_fetches("now_us", function(txn) return tostring(now_us()) end)

-- Called for every response, also those that haproxy gives in place of an image that did not answer.
core.register_fetches("count", function(txn)
  local began, slot = tonumber(txn:get_var("txn.began")), core.backends[txn.f:be_name()]
  local server = slot and slot.servers[txn.f:srv_name() or ""]
  if began == nil or server == nil then return "" end
  local found = counters_of(slot.name .. " " .. server:get_addr())
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
    applet:send(string.format("%s %d %d %d %s\n", key, found.requests, found.failures, found.sum,
      table.concat(found.bins, ",")))
  end
end)
