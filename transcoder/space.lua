-- Room on file systems that running jobs may still fill. space.py puts TTL before this text: the seconds that a
-- reservation lives without a word from its holder; and KEPT, those that what nobody uses is kept.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local function leases_key(place) return 'transcoder:space:' .. place .. ':leases' end
local function needs_key(place) return 'transcoder:space:' .. place .. ':needs' end

local function drop(place, lease)
  redis.call('ZREM', leases_key(place), lease)
  redis.call('HDEL', needs_key(place), lease)
end

local function keep(place, lease, need)
  redis.call('ZADD', leases_key(place), now + TTL, lease)
  redis.call('HSET', needs_key(place), lease, need)
  for _, key in ipairs({leases_key(place), needs_key(place)}) do redis.call('EXPIRE', key, KEPT) end
end

local function sweep(place)
  for _, lease in ipairs(redis.call('ZRANGEBYSCORE', leases_key(place), '-inf', now)) do drop(place, lease) end
end

-- what all but this one may still write
local function others(place, lease)
  local sum = 0
  local needs = redis.call('HGETALL', needs_key(place))
  for at = 1, #needs, 2 do
    if needs[at] ~= lease then sum = sum + tonumber(needs[at + 1]) end
  end
  return sum
end

local operations = {}

function operations.reserve(ask)
  sweep(ask.place)
  local reserved = others(ask.place, ask.lease)
  if ask.free - reserved < ask.need then return {'short', string.format('%.0f', reserved)} end
  keep(ask.place, ask.lease, ask.need)
  return {'ok'}
end

function operations.renew(ask)
  for _, held in ipairs(ask.leases) do keep(unpack(held)) end
  return {'ok'}
end

function operations.release(ask)
  drop(ask.place, ask.lease)
  return {'ok'}
end

return operations[ARGV[1]](cjson.decode(ARGV[2]))
