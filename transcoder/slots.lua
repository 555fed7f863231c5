-- The leases on what a device, or the CPUs of a container, can bear. slots.py puts the constants before this text:
-- TTL (seconds that a lease lives without a word from its holder), KEPT (seconds that what nobody uses is kept).
-- Among equals whoever asks first is served first: a big job is not starved by small ones that would fit before it. One
-- that is less urgent stands `behind`, by so many seconds, as if it had come later: so nobody waits for ever.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local function key(place, what) return 'transcoder:slots:' .. place .. ':' .. what end
local function wake_key(lease) return 'transcoder:slots:wake:' .. lease end
local function cost_of(place, lease) return tonumber(redis.call('HGET', key(place, 'costs'), lease) or 0) end
local function budget_of(place) return tonumber(redis.call('GET', key(place, 'budget')) or 0) end

local function used(place)
  local sum = 0
  for _, lease in ipairs(redis.call('ZRANGE', key(place, 'leases'), 0, -1)) do sum = sum + cost_of(place, lease) end
  return sum
end

local function drop(place, lease)
  for _, what in ipairs({'leases', 'waiters', 'heard'}) do redis.call('ZREM', key(place, what), lease) end
  redis.call('HDEL', key(place, 'costs'), lease)
  redis.call('HDEL', 'transcoder:slots:places', lease)
  redis.call('DEL', wake_key(lease))
end

-- those whose worker says nothing any more
local function sweep(place)
  for _, what in ipairs({'leases', 'heard'}) do
    for _, lease in ipairs(redis.call('ZRANGEBYSCORE', key(place, what), '-inf', now)) do drop(place, lease) end
  end
end

local function grant(place)
  local budget, taken = budget_of(place), used(place)
  while true do
    local first = redis.call('ZRANGE', key(place, 'waiters'), 0, 0)[1]
    if not first then return end
    local cost = math.min(cost_of(place, first), budget) -- what is larger than the whole has the whole
    if taken + cost > budget then return end
    redis.call('ZREM', key(place, 'waiters'), first)
    redis.call('ZREM', key(place, 'heard'), first)
    redis.call('ZADD', key(place, 'leases'), now + TTL, first)
    redis.call('HSET', key(place, 'costs'), first, cost)
    redis.call('LPUSH', wake_key(first), 'yours')
    redis.call('EXPIRE', wake_key(first), TTL)
    taken = taken + cost
  end
end

local function keep(place)
  for _, what in ipairs({'leases', 'waiters', 'heard', 'costs', 'budget', 'ticket'}) do
    redis.call('EXPIRE', key(place, what), KEPT)
  end
end

-- a place in the line, or at its head; or the lease once more
local function ask(place, lease, cost, behind, first)
  if redis.call('ZSCORE', key(place, 'leases'), lease) then
    redis.call('ZADD', key(place, 'leases'), now + TTL, lease)
    return
  end
  if not redis.call('ZSCORE', key(place, 'waiters'), lease) then
    local turn = first and -redis.call('INCR', key(place, 'ticket')) or string.format('%.6f', now + behind)
    redis.call('ZADD', key(place, 'waiters'), turn, lease)
    redis.call('HSET', key(place, 'costs'), lease, cost)
    redis.call('HSET', 'transcoder:slots:places', lease, place)
  end
  redis.call('ZADD', key(place, 'heard'), now + TTL, lease)
end

local operations = {}

function operations.ask(words)
  sweep(words.place)
  redis.call('SET', key(words.place, 'budget'), words.budget)
  ask(words.place, words.lease, words.cost, words.behind or 0, false)
  grant(words.place)
  keep(words.place)
  if not redis.call('ZSCORE', key(words.place, 'leases'), words.lease) then return {'waits'} end
  redis.call('DEL', wake_key(words.lease))
  return {'yours'}
end

-- A lease that ran out while Redis was away or its holder was stopped is asked for again, before all others: its job
-- runs on meanwhile, but what is granted stays within the budget.
function operations.renew(words)
  for _, held in ipairs(words.leases) do
    local place, lease, cost = unpack(held)
    sweep(place)
    ask(place, lease, cost, 0, true)
    grant(place)
    keep(place)
  end
  return {'ok'}
end

function operations.release(words)
  sweep(words.place)
  drop(words.place, words.lease)
  grant(words.place)
  return {'ok'}
end

-- what an attempt held, or waited for, whose worker is gone
function operations.forget(words)
  local found = redis.call('HGETALL', 'transcoder:slots:places')
  for at = 1, #found, 2 do
    local lease, place = found[at], found[at + 1]
    if lease:sub(1, #words.beginning) == words.beginning then
      drop(place, lease)
      grant(place)
    end
  end
  return {'ok'}
end

-- {used, budget, waiting} of each place
function operations.usage(words)
  local answer = {'ok'}
  for _, place in ipairs(words.places) do
    sweep(place)
    grant(place)
    answer[#answer + 1] = {string.format('%.0f', used(place)), redis.call('ZCARD', key(place, 'waiters'))}
  end
  return answer
end

return operations[ARGV[1]](cjson.decode(ARGV[2]))
