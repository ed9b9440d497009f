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
