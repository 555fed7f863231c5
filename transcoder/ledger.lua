-- The ledger's changes, each of which happens whole or not at all. ledger.py puts the constants before this text:
-- LEGAL[from][to], RETENTION (seconds that a finished record is kept), HISTORY (lines of a job's history), ALIVE (seconds
-- after which a worker that says nothing counts no more), GRACE (seconds that nobody serves a queue before jobs leave it),
-- SILENT (seconds that a silent worker is still listed), CLEARLY and EARLY (how much shorter a job must be than
-- hardware's backlog to go to software, and how much longer that must be than a job that waits for its turn), FRONT (jobs
-- that are brought to the front at a time), ARRANGED (seconds between two looks at the order of the queues), STEPS (what
-- follows a queue's name in those of its lists), REPEATED (seconds in which a question may come a second time).
-- Every operation answers with a word first: 'ok', or why it was refused. Times are Redis' own, in seconds of Unix time.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local function at(time) return string.format('%.6f', time) end
local function job_key(id) return 'transcoder:job:' .. id end
local function history_key(id) return 'transcoder:history:' .. id end
local function state_key(state) return 'transcoder:state:' .. state end
local function waiting_key(queue) return 'transcoder:waiting:' .. queue end
local function prefer_key(queue) return 'transcoder:prefer:' .. queue end
local function effort_key(queue) return 'transcoder:effort:' .. queue end
local function movable_key(queue) return 'transcoder:movable:' .. queue end
local function serving_key(queue) return 'transcoder:serving:' .. queue end
local function message_key(id) return 'transcoder:message:' .. id end
local function target_key(digest) return 'transcoder:target:' .. digest end
local function token_key(digest) return 'transcoder:token:' .. digest end

-- Grows with every sign of life. Each is kept with the number that it had then, so that who knows how far the count was
-- a while ago knows who has been silent since, by a clock of its own.
local function pulse() return redis.call('INCR', 'transcoder:pulse') end
local function alive(id) redis.call('ZADD', 'transcoder:heartbeats', pulse(), id) end

local function field(id, name) return redis.call('HGET', job_key(id), name) end
local function finished(state) return next(LEGAL[state]) == nil end

local function note(id, time, what, detail)
  local lines = redis.call('RPUSH', history_key(id), cjson.encode({time, what, detail or ''}))
  if lines > HISTORY then redis.call('LTRIM', history_key(id), -HISTORY, -1) end
end

-- What a worker reports of a job: the fields of its record that are new. Phases that began since its last word,
-- {{name, seconds ago, detail}, ...}, go into the history.
local function reported(job)
  for _, begun in ipairs(job.phases) do note(job.id, now - begun[2], begun[1], begun[3]) end
  local last, fields = job.phases[#job.phases], {}
  if last then fields = {'phase', last[1], 'detail', last[3]} end
  for _, name in ipairs({'progress', 'effort', 'result', 'error'}) do
    if job[name] then
      fields[#fields + 1] = name
      fields[#fields + 1] = job[name]
    end
  end
  return fields
end

-- the index of a final state forgets what has expired, a bounded number at a time
local function prune(state)
  local gone = redis.call('ZRANGEBYSCORE', state_key(state), '-inf', now - RETENTION, 'LIMIT', 0, AT_ONCE)
  for _, id in ipairs(gone) do
    redis.call('ZREM', state_key(state), id)
    redis.call('ZREM', 'transcoder:jobs', id)
  end
end

-- nothing is kept of a finished job but its record, and that for a while
local function retire(id, state)
  local targets, token = unpack(redis.call('HMGET', job_key(id), 'targets', 'token'))
  for _, digest in ipairs(cjson.decode(targets or '[]')) do
    if redis.call('GET', target_key(digest)) == id then redis.call('DEL', target_key(digest)) end
  end
  redis.call('DEL', message_key(id))
  redis.call('ZREM', 'transcoder:aside', id)
  redis.call('ZREM', 'transcoder:later', id)
  redis.call('HDEL', job_key(id), 'targets', 'paths', 'unfenced', 'claim', 'cancel', 'tried', 'once', 'again')
  if token then redis.call('EXPIRE', token_key(token), RETENTION) end
  redis.call('EXPIRE', job_key(id), RETENTION)
  redis.call('EXPIRE', history_key(id), RETENTION)
  prune(state)
end

local wait_in

local function weigh_out(id, queue, effort)
  if redis.call('ZREM', effort_key(queue), id) == 1 then
    redis.call('HINCRBY', 'transcoder:backlog', queue, '-' .. effort)
  end
  redis.call('ZREM', movable_key(queue), id)
end

local function wait_no_more(id, queue, effort)
  if effort then weigh_out(id, queue, effort) end
  redis.call('ZREM', waiting_key(queue), id)
  redis.call('ZREM', prefer_key(queue), id)
  redis.call('ZREM', 'transcoder:rising', id)
end

local function paused(queue) return redis.call('SISMEMBER', 'transcoder:paused', queue) == 1 end

local function live(queue) return redis.call('ZCOUNT', serving_key(queue), now - ALIVE, '+inf') end

local function has_tried(id, owner)
  for _, other in ipairs(cjson.decode(field(id, 'tried') or '[]')) do
    if other == owner then return true end
  end
  return false
end

-- whether a live worker serves the queue that has not handed the job on
local function another_serves(id, queue)
  for _, owner in ipairs(redis.call('ZRANGEBYSCORE', serving_key(queue), now - ALIVE, '+inf')) do
    if not has_tried(id, owner) then return true end
  end
  return false
end

-- The one way from state to state, with fields of the record that are set in passing; answers with the refusal, or nil
-- when it is done.
local function move(id, to, detail, fields)
  local from, queue, effort = unpack(redis.call('HMGET', job_key(id), 'state', 'queue', 'effort'))
  if not from then return {'unknown'} end
  if not LEGAL[from][to] then return {'refused', from} end
  redis.call('HSET', job_key(id), 'state', to, 'updated', at(now), unpack(fields or {}))
  redis.call('ZREM', state_key(from), id)
  redis.call('ZADD', state_key(to), at(now), id)
  if from == 'queued' then wait_no_more(id, queue, effort) end
  if from == 'running' then redis.call('ZREM', 'transcoder:heartbeats', id) end
  if to == 'queued' then wait_in(id, queue) end
  note(id, now, to, detail)
  if finished(to) then
    redis.call('HSET', job_key(id), 'finished', at(now))
    retire(id, to)
  end
end

-- nil when the job runs under this fencing number, otherwise the refusal
local function not_held(id, fence)
  local state, attempt = unpack(redis.call('HMGET', job_key(id), 'state', 'attempt'))
  if not state then return {'unknown'} end
  if state ~= 'running' or attempt ~= fence then return {'refused', state, attempt} end
end

local operations = {}

-- The job for its new holder, or why not; once more where the answer was lost on the way and the claim is repeated.
local function claim(id, ask)
  local state, schema, queue, word, again, cancel, tried = unpack(redis.call('HMGET', job_key(id), 'state', 'schema',
    'queue', 'claim', 'again', 'cancel', 'tried'))
  if state ~= 'running' or word ~= ask.claim then
    -- doubled, late, or of a job that is gone; or it is not time yet
    if state ~= 'queued' or again then return {'none'} end
    -- one that only has to be brought to its end is no trouble; the others' messages come again when they are missed
    if paused(queue) and not cancel then return {'none'} end
    if tonumber(schema) > ask.schema then return {'newer', schema, queue} end
    -- It handed the job on: another shall have it, as soon as one has a place. Where that one is gone by now the job
    -- would wait for nobody: then this one tries again, or says that it cannot be done.
    if tried and has_tried(id, ask.owner) and another_serves(id, queue) then
      redis.call('ZADD', 'transcoder:aside', now + ASIDE, id)
      return {'none'}
    end
    redis.call('HINCRBY', job_key(id), 'attempt', 1)
    move(id, 'running', ask.owner, {'owner', ask.owner, 'claim', ask.claim, 'started', at(now), 'heartbeat', at(now),
      'phase', 'probing'})
    alive(id)
  end
  local spec, attempt, paths, lost, put_off, crashes, careful = unpack(redis.call('HMGET', job_key(id), 'spec',
    'attempt', 'paths', 'lost', 'put_off', 'crashes', 'careful'))
  return {'ok', spec, attempt, queue, paths or '[]', lost or 0, put_off or 0, crashes or 0, careful or 0}
end

function operations.claim(ask) return claim(ask.id, ask) end

-- The next job for a place that has become free, from the message that it would get by asking the lists of these queues:
-- the more urgent list first, and among equals the queue that is named first. Messages that name no job to be done are
-- taken off, a bounded number of them. Where the answer is lost on the way the repetition gets the same job, unless that
-- went back to a queue meanwhile.
local function take_next(ask)
  local taken_key = 'transcoder:claim:' .. ask.claim
  local before = redis.call('GET', taken_key)
  if before then return {'ok', before, field(before, 'claim') == ask.claim and claim(before, ask) or {'none'}} end
  local open, seen = {}, 0
  for _, queue in ipairs(ask.queues) do -- workers hear later of a pause than it holds
    if not paused(queue) then open[#open + 1] = queue end
  end
  for _, step in ipairs(STEPS) do
    for _, queue in ipairs(open) do
      while seen < AT_ONCE do
        local text = redis.call('RPOP', queue .. step)
        if not text then break end
        seen = seen + 1
        local id = text:match('"id": "(%w+)%.')
        local answer = id and claim(id, ask) or {'none'}
        if answer[1] ~= 'none' then
          redis.call('SET', taken_key, id, 'EX', REPEATED)
          return {'ok', id, answer}
        end
      end
    end
  end
  return {'none'}
end

function operations.take_next(ask) return take_next(ask) end

-- the end of a running job; with `place` the place that it leaves gets the next one
function operations.finish(ask)
  local refusal = not_held(ask.id, ask.fence) or move(ask.id, ask.state, nil, reported(ask))
  local again = refusal and refusal[2] == ask.state and refusal[3] == ask.fence -- by a connection that broke
  if refusal and not again then return refusal end
  return ask.place and take_next(ask.place) or {'ok'}
end

-- A script makes its functions anew at every call: those above are all that a job needs to begin and to end.
if operations[ARGV[1]] then return operations[ARGV[1]](cjson.decode(ARGV[2])) end

local function worker_key(owner) return 'transcoder:worker:' .. owner end
local function live_workers() return redis.call('ZRANGEBYSCORE', 'transcoder:workers', now - ALIVE, '+inf') end

local function unfinished(id)
  local state = field(id, 'state')
  return state and not finished(state)
end

-- the first of the targets that another unfinished job has, and that job
local function taken(id, targets)
  for place, digest in ipairs(targets) do
    local other = redis.call('GET', target_key(digest))
    if other and other ~= id and unfinished(other) then return place, other end
  end
end

local function take(id, targets)
  local mine = cjson.decode(field(id, 'targets') or '[]')
  for _, digest in ipairs(targets) do
    if redis.call('GET', target_key(digest)) ~= id then
      redis.call('SET', target_key(digest), id)
      mine[#mine + 1] = digest
    end
  end
  if #mine > 0 then redis.call('HSET', job_key(id), 'targets', cjson.encode(mine)) end
end

-- What waits and is known in size is indexed by that, and all of it together is counted: `movable` are those of `prefer`
-- that wait for hardware.
local function weigh_in(id, queue, effort, movable)
  if redis.call('ZADD', effort_key(queue), effort, id) == 1 then
    redis.call('HINCRBY', 'transcoder:backlog', queue, effort)
  end
  if movable then redis.call('ZADD', movable_key(queue), effort, id) end
end

-- `prefer` jobs that wait for hardware have an index of their own: those of `require` before them never hop
function wait_in(id, queue)
  local policy, software, effort = unpack(redis.call('HMGET', job_key(id), 'policy', 'software', 'effort'))
  local movable = policy == 'prefer' and queue ~= software
  redis.call('SADD', 'transcoder:queues', queue)
  redis.call('HSET', job_key(id), 'queue', queue)
  redis.call('ZADD', waiting_key(queue), at(now), id)
  redis.call('ZADD', 'transcoder:rising', at(now), id)
  if effort then weigh_in(id, queue, effort, movable)
  elseif movable then redis.call('ZADD', prefer_key(queue), at(now), id) end
end

-- the job's message as it lies in that queue, and the step of its list
local function message(id, queue)
  local text, step = unpack(redis.call('HMGET', message_key(id), 'text', 'step'))
  return text:gsub('"routing_key": "[^"]*"', '"routing_key": "' .. queue .. '"'), step
end

-- the job's message in that queue, behind all others or, for a job that has waited elsewhere, before them
local function send(id, queue, before)
  local text, step = message(id, queue)
  redis.call(before and 'RPUSH' or 'LPUSH', queue .. step, text)
  return text
end

-- A job that has waited long becomes one step more urgent, before those that have waited less there. Its old message is
-- sought from the end where the oldest are. What is the most urgent already stays where it is.
local function rise(id)
  local queue, step = field(id, 'queue'), redis.call('HGET', message_key(id), 'step')
  for place = 2, #STEPS do
    if STEPS[place] == step then
      redis.call('HSET', message_key(id), 'step', STEPS[place - 1])
      redis.call('LREM', queue .. step, -1, send(id, queue, true))
      redis.call('ZADD', 'transcoder:rising', at(now), id)
      return
    end
  end
  redis.call('ZREM', 'transcoder:rising', id)
end

-- what the live workers say of themselves
local function told_by_live(answer)
  for _, owner in ipairs(live_workers()) do
    answer[#answer + 1] = redis.call('HGET', worker_key(owner), 'told') or '{}'
  end
  return answer
end

-- the queue of a new job; nil where its policy forbids all that lives
local function choose(job)
  if not job.hardware or live(job.hardware) > 0 then return job.hardware or job.software end
  if job.policy == 'require' then return nil end
  return live(job.software) > 0 and job.software or job.hardware
end

function operations.submit(job)
  if redis.call('EXISTS', job_key(job.id)) == 1 then return {'ok', job.id} end -- sent twice by a connection that broke
  local first = job.token and redis.call('GET', token_key(job.token))
  local digest = first and field(first, 'digest')
  if digest then return {digest == job.digest and 'ok' or 'conflict', first} end
  local place, other = taken(job.id, job.targets)
  if place then return {'taken', place, other} end
  local queue = choose(job)
  if not queue then return told_by_live({'nowhere'}) end

  redis.call('HSET', job_key(job.id), 'state', 'queued', 'spec', job.spec, 'schema', job.schema,
    'priority', job.priority, 'source', job.source, 'target', job.target, 'profile', job.profile,
    'policy', job.policy, 'software', job.software, 'created', at(now), 'updated', at(now), 'attempt', 0)
  redis.call('HSET', message_key(job.id), 'text', job.message, 'step', job.step)
  if job.token then
    redis.call('HSET', job_key(job.id), 'token', job.token, 'digest', job.digest)
    redis.call('SET', token_key(job.token), job.id)
  end
  take(job.id, job.targets)
  redis.call('ZADD', 'transcoder:jobs', at(now), job.id)
  redis.call('ZADD', state_key('queued'), at(now), job.id)
  wait_in(job.id, queue)
  note(job.id, now, 'queued')
  send(job.id, queue)
  return {'ok', job.id}
end

-- the queues that a worker serves, which are all that it serves
local function serve(owner, queues)
  local served = {}
  for _, queue in ipairs(queues) do
    served[queue] = true
    redis.call('SADD', 'transcoder:queues', queue)
    redis.call('ZADD', serving_key(queue), at(now), owner)
    redis.call('HSET', 'transcoder:served', queue, at(now))
  end
  for _, queue in ipairs(redis.call('SMEMBERS', 'transcoder:queues')) do
    if not served[queue] then redis.call('ZREM', serving_key(queue), owner) end
    redis.call('ZREMRANGEBYSCORE', serving_key(queue), '-inf', now - SILENT)
  end
end

function operations.beat(ask)
  redis.call('ZADD', 'transcoder:workers', at(now), ask.owner)
  redis.call('ZREMRANGEBYSCORE', 'transcoder:workers', '-inf', now - SILENT)
  redis.call('HSET', worker_key(ask.owner), 'told', ask.told, 'running', #ask.jobs, 'places', ask.places,
    'pulse', pulse())
  redis.call('EXPIRE', worker_key(ask.owner), SILENT)
  serve(ask.owner, ask.queues)
  local answer = {'ok'}
  for place, job in ipairs(ask.jobs) do
    if not_held(job.id, job.fence) then
      answer[place + 1] = 'lost'
    else
      redis.call('HSET', job_key(job.id), 'heartbeat', at(now), unpack(reported(job)))
      alive(job.id)
      answer[place + 1] = field(job.id, 'cancel') and 'cancelled' or 'go on'
    end
  end
  return answer
end

function operations.leave(ask)
  redis.call('ZREM', 'transcoder:workers', ask.owner)
  redis.call('DEL', worker_key(ask.owner))
  serve(ask.owner, {})
  return {'ok'}
end

-- {told, seconds since it was heard of, running jobs} of every worker, the latest heard first
function operations.workers()
  local answer = {'ok'}
  local found = redis.call('ZREVRANGE', 'transcoder:workers', 0, -1, 'WITHSCORES')
  for place = 1, #found, 2 do
    local told, running = unpack(redis.call('HMGET', worker_key(found[place]), 'told', 'running'))
    if told then answer[#answer + 1] = {found[place], told, running, at(math.max(0, now - tonumber(found[place + 1])))} end
  end
  return answer
end

function operations.hold(ask)
  local refusal = not_held(ask.id, ask.fence)
  if refusal then return refusal end
  return {field(ask.id, 'cancel') and 'cancelled' or 'ok'}
end

function operations.take_targets(ask)
  local refusal = not_held(ask.id, ask.fence)
  if refusal then return refusal end
  local place, other = taken(ask.id, ask.targets)
  if place then return {'taken', place, other} end
  take(ask.id, ask.targets)
  redis.call('HSET', job_key(ask.id), 'paths', ask.paths)
  return {'ok'}
end

-- what earlier attempts at the job left is out of their hands: nobody but its holder can publish it from now on
function operations.fenced(ask)
  local refusal = not_held(ask.id, ask.fence)
  if refusal then return refusal end
  redis.call('HDEL', job_key(ask.id), 'unfenced')
  return {field(ask.id, 'cancel') and 'cancelled' or 'ok'}
end

local function put_back(id, why)
  local refusal = move(id, 'queued', why)
  if not refusal then redis.call('HDEL', job_key(id), 'owner', 'claim', 'phase', 'detail', 'progress', 'heartbeat', 'started') end
  return refusal
end

local function cancel(id, error)
  local refusal = move(id, 'cancelled')
  if not refusal then redis.call('HSET', job_key(id), 'error', error) end
  return refusal
end

function operations.hand_back(ask)
  local refusal, asked = not_held(ask.id, ask.fence), field(ask.id, 'cancel')
  if not refusal and asked then return cancel(ask.id, asked) or {'ok'} end
  refusal = refusal or put_back(ask.id, ask.why)
  if refusal then return refusal end
  send(ask.id, field(ask.id, 'queue'), true)
  return {'ok'}
end

-- later, in seconds, by the clock of Redis: until then there is no message, and one that comes late finds no job
function operations.put_off(ask)
  local refusal, asked = not_held(ask.id, ask.fence), field(ask.id, 'cancel')
  if not refusal and asked then return cancel(ask.id, asked) or {'ok'} end
  if refusal then return refusal end
  redis.call('HSET', job_key(ask.id), 'updated', at(now), unpack(reported(ask)))
  if ask.careful then redis.call('HSET', job_key(ask.id), 'careful', 1) end
  if ask.queue then redis.call('HSET', job_key(ask.id), 'queue', ask.queue) end
  put_back(ask.id, ask.why)
  wait_no_more(ask.id, unpack(redis.call('HMGET', job_key(ask.id), 'queue', 'effort')))
  if not ask.held then redis.call('HINCRBY', job_key(ask.id), 'put_off', 1) end
  redis.call('HINCRBY', job_key(ask.id), 'crashes', ask.crashes)
  redis.call('HSET', job_key(ask.id), 'again', at(now + ask.seconds))
  redis.call('ZADD', 'transcoder:later', now + ask.seconds, ask.id)
  return {'ok'}
end

-- to the first of these queues that another worker serves, which has not handed the job on itself. A worker never gets
-- back what it handed on, so a job cannot go in circles. With `once` only the first who asks for that hands it on: where
-- its files are missing on two hosts, they are missing.
function operations.hand_on(ask)
  local refusal = not_held(ask.id, ask.fence)
  if refusal then return refusal end
  if ask.once and redis.call('HSETNX', job_key(ask.id), 'once', 1) == 0 then return told_by_live({'nowhere'}) end
  local tried, owner = cjson.decode(field(ask.id, 'tried') or '[]'), field(ask.id, 'owner')
  if not has_tried(ask.id, owner) then tried[#tried + 1] = owner end
  redis.call('HSET', job_key(ask.id), 'tried', cjson.encode(tried))
  for _, queue in ipairs(ask.queues) do
    if another_serves(ask.id, queue) then
      redis.call('HSET', job_key(ask.id), 'queue', queue)
      put_back(ask.id, ask.why)
      send(ask.id, queue, true)
      return {'ok', queue}
    end
  end
  return told_by_live({'nowhere'})
end

function operations.post(ask)
  local state, queue = unpack(redis.call('HMGET', job_key(ask.id), 'state', 'queue'))
  if not state then return {'unknown'} end
  if state ~= 'queued' then return {'refused', state} end
  if queue ~= ask.queue then
    wait_no_more(ask.id, queue, field(ask.id, 'effort'))
    wait_in(ask.id, ask.queue)
    note(ask.id, now, 'queued', ask.why)
  end
  send(ask.id, ask.queue)
  return {'ok'}
end

-- where a job goes that only has to be brought to its end, which any worker can: there where one is
local function to_be_closed_in(id)
  local queue = field(id, 'queue')
  for _, other in ipairs(redis.call('SMEMBERS', 'transcoder:queues')) do
    if live(queue) == 0 and live(other) > 0 then return other end
  end
  return queue
end

-- The job of a worker that is not heard of any more waits again, before those that have not begun. Nobody can say
-- whether that worker is dead or only away: until its files are taken from it the job is `unfenced`.
local function take_back(id, owner)
  local lost = redis.call('HINCRBY', job_key(id), 'lost', 1)
  redis.call('HSET', job_key(id), 'unfenced', 1)
  put_back(id, 'worker ' .. owner .. ' is not heard of any more')
  send(id, field(id, 'cancel') and to_be_closed_in(id) or field(id, 'queue'), true)
  return {id, field(id, 'attempt'), owner, lost}
end

-- jobs that were claimed by an older version, or a record that was mended by hand
local function watch_all_that_run(count)
  local running = state_key('running')
  if redis.call('ZCARD', running) == redis.call('ZCARD', 'transcoder:heartbeats') then return end
  redis.call('ZINTERSTORE', 'transcoder:heartbeats', 2, 'transcoder:heartbeats', running, 'WEIGHTS', 1, 0)
  for _, id in ipairs(redis.call('ZRANGE', running, 0, -1)) do
    redis.call('ZADD', 'transcoder:heartbeats', 'NX', count, id)
  end
end

-- how many jobs wait in a queue beyond the messages that are there for them
local function unsent(queue)
  local missing = redis.call('ZCARD', waiting_key(queue))
  for _, step in ipairs(STEPS) do missing = missing - redis.call('LLEN', queue .. step) end
  return missing
end

-- One worker at a time does this, for all; the others only learn how far the count of signs of life is. `dead` is how
-- far it was when they had to be heard of last, `seen` how far it was at the last look: where it went back, this is
-- another Redis, or one that lost its last moments, and nothing that was seen before counts. Answers with the count, the paused queues, whether this worker is the one, the jobs that
-- were taken back, and the queues that lack messages.
function operations.reap(ask)
  local reaper = redis.call('GET', 'transcoder:reaper')
  local count = tonumber(redis.call('GET', 'transcoder:pulse') or 0)
  local resting = redis.call('SMEMBERS', 'transcoder:paused')
  if count < ask.seen or reaper and reaper ~= ask.owner then return {'ok', count, resting, 0} end
  redis.call('SET', 'transcoder:reaper', ask.owner, 'PX', ask.lease)
  watch_all_that_run(count)
  local jobs, queues = {}, {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'transcoder:heartbeats', '-inf', ask.dead, 'LIMIT', 0, AT_ONCE)) do
    local owner = field(id, 'owner')
    jobs[#jobs + 1] = take_back(id, owner)
    -- nobody waits for what it served
    if tonumber(redis.call('HGET', worker_key(owner), 'pulse') or 0) <= ask.dead then serve(owner, {}) end
  end
  for _, queue in ipairs(redis.call('SMEMBERS', 'transcoder:queues')) do
    if unsent(queue) > 0 then queues[#queues + 1] = queue end
  end
  return {'ok', count, resting, 1, jobs, queues}
end

function operations.pause(ask)
  redis.call('SADD', 'transcoder:paused', ask.queue)
  return {'ok'}
end

function operations.resume(ask)
  redis.call('SREM', 'transcoder:paused', ask.queue)
  return {'ok'}
end

-- jobs whose message was lost, once more
function operations.send_again(ask)
  local answer = {'ok'}
  for _, id in ipairs(ask.ids) do
    local state, queue = unpack(redis.call('HMGET', job_key(id), 'state', 'queue'))
    if state == 'queued' and queue == ask.queue then
      send(id, field(id, 'cancel') and to_be_closed_in(id) or queue, true)
      answer[#answer + 1] = id
    end
  end
  return answer
end

-- The next job in these queues that waits although it was sent some seconds ago and of which nobody knows how large it is.
-- Each is given out once: whoever cannot find it out leaves the job where it is.
function operations.unweighed(ask)
  for _, queue in ipairs(ask.queues) do
    local last = tonumber(redis.call('HGET', 'transcoder:scouted', queue) or 0)
    if last > now then last = 0 end -- the clock was set back
    local found = redis.call('ZRANGEBYSCORE', waiting_key(queue), '(' .. at(last), now - ask.after, 'WITHSCORES', 'LIMIT', 0, AT_ONCE)
    for place = 1, #found, 2 do
      redis.call('HSET', 'transcoder:scouted', queue, found[place + 1])
      local spec, effort = unpack(redis.call('HMGET', job_key(found[place]), 'spec', 'effort'))
      if not effort then return {'ok', found[place], spec} end
    end
  end
  return {'none'}
end

-- how large a job is that waits, in pixels; what was said first counts
function operations.weigh(ask)
  local state, queue, policy, software, effort =
    unpack(redis.call('HMGET', job_key(ask.id), 'state', 'queue', 'policy', 'software', 'effort'))
  if not state then return {'unknown'} end
  if state ~= 'queued' then return {'refused', state} end
  if effort then return {'ok'} end
  redis.call('HSET', job_key(ask.id), 'effort', ask.effort)
  if redis.call('ZSCORE', waiting_key(queue), ask.id) then -- not one that is tried again later
    redis.call('ZREM', prefer_key(queue), ask.id)
    weigh_in(ask.id, queue, ask.effort, policy == 'prefer' and queue ~= software)
  end
  return {'ok'}
end

-- how long a `prefer` job may wait in that queue: as agreed, or a moment where nobody serves it any more
local function patience(queue, wait)
  if live(queue) > 0 then return wait, 'no free place on hardware', 'waited' end
  local last = tonumber(redis.call('HGET', 'transcoder:served', queue) or 0)
  if now - last < GRACE then return wait, 'no free place on hardware', 'unserved' end
  return math.min(GRACE, wait), 'no live worker serves that', 'unserved'
end

-- A script makes its functions anew at every call: those for looking after the queues only where that is asked.
if ARGV[1] == 'tend' then
  -- moves a job to software's queue, at whose end it waits
  local function hop(id, queue, why)
    local software, effort = unpack(redis.call('HMGET', job_key(id), 'software', 'effort'))
    wait_no_more(id, queue, effort)
    wait_in(id, software)
    note(id, now, 'queued', 'goes to software: ' .. why)
    send(id, software)
  end

  -- The jobs that waited long enough for hardware. How large they are plays no part where that is served by nobody, nor
  -- where the order is that of arrival.
  local function waited_enough(queue, wait, all)
    -- what no scout has come to yet is not left to chance
    local looked_into = all and now or tonumber(redis.call('HGET', 'transcoder:scouted', queue) or 0)
    local latest = math.min(now - wait, looked_into)
    local found = redis.call('ZRANGEBYSCORE', prefer_key(queue), '-inf', latest, 'LIMIT', 0, AT_ONCE)
    if not all then return found end
    for _, id in ipairs(redis.call('ZRANGE', movable_key(queue), 0, AT_ONCE - 1)) do
      if tonumber(redis.call('ZSCORE', waiting_key(queue), id)) <= now - wait then found[#found + 1] = id end
    end
    return found
  end

  -- by worker: how many jobs it runs, and pixels that they have left, as far as that is known
  local function in_hand()
    local jobs, left = {}, {}
    for _, id in ipairs(redis.call('ZRANGE', state_key('running'), 0, -1)) do
      local owner, effort, progress = unpack(redis.call('HMGET', job_key(id), 'owner', 'effort', 'progress'))
      local done = tonumber(progress and cjson.decode(progress).fraction) or 0
      jobs[owner] = (jobs[owner] or 0) + 1
      left[owner] = (left[owner] or 0) + (tonumber(effort) or 0) * (1 - done)
    end
    return jobs, left
  end

  -- of the live workers that serve a queue: places, free places, and pixels that they and the queue have before them
  local function load_of(queue, jobs, left)
    local places, free, pixels = 0, 0, tonumber(redis.call('HGET', 'transcoder:backlog', queue) or 0)
    for _, owner in ipairs(redis.call('ZRANGEBYSCORE', serving_key(queue), now - ALIVE, '+inf')) do
      local own = tonumber(redis.call('HGET', worker_key(owner), 'places') or 0)
      places = places + own
      free = free + math.max(0, own - (jobs[owner] or 0))
      pixels = pixels + (left[owner] or 0)
    end
    return places, free, pixels
  end

  -- The job that ends clearly sooner in software than hardware would be through with all others: of the shortest of these
  -- the one that has waited longest. nil where there is none.
  local function ends_sooner(queue, places, pixels, slower)
    local most = pixels / (slower * CLEARLY * places + 1)
    local first, earliest
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', movable_key(queue), '-inf', most, 'LIMIT', 0, AT_ONCE)) do
      local since = tonumber(redis.call('ZSCORE', waiting_key(queue), id))
      if not earliest or since < earliest then first, earliest = id, since end
    end
    return first
  end

  -- Jobs go to the places that software has free, as long as there is one that ends sooner there.
  local function fill_software(queue, jobs, left, slower, answer)
    local places, _, pixels = load_of(queue, jobs, left)
    if places == 0 then return end
    for _ = 1, AT_ONCE do
      local id = ends_sooner(queue, places, pixels, slower)
      if not id then return end
      local software, effort = unpack(redis.call('HMGET', job_key(id), 'software', 'effort'))
      local _, free = load_of(software, jobs, left)
      if paused(software) or redis.call('ZCARD', waiting_key(software)) >= free then return end
      hop(id, queue, 'it ends sooner there')
      pixels = pixels - tonumber(effort)
      answer[#answer + 1] = {id, queue, 'sooner'}
    end
  end

  -- those jobs in front of their list, the first of them as the very first
  local function put_first(queue, ids)
    local by_step = {}
    for _, id in ipairs(ids) do
      local step = redis.call('HGET', message_key(id), 'step')
      by_step[step] = by_step[step] or {}
      table.insert(by_step[step], id)
    end
    for step, wanted in pairs(by_step) do
      local list = queue .. step
      local there, same = redis.call('LRANGE', list, -#wanted, -1), true
      for k, id in ipairs(wanted) do
        same = same and (there[#wanted + 1 - k] or ''):find('"id": "' .. id .. '.', 1, true)
      end
      for k = same and 0 or #wanted, 1, -1 do
        local text = message(wanted[k], queue)
        -- what is not there was just taken, or is lost and will be missed
        if redis.call('LREM', list, -1, text) == 1 then redis.call('RPUSH', list, text) end
      end
    end
  end

  -- The longest jobs, as soon as all else would not keep the places busy until well after they have ended: begun last,
  -- each would end alone. Before that the order is that of arrival. No job is overtaken by one that came longer after it
  -- than the least urgent takes to rise to the most urgent.
  local function long_first(queue, jobs, left, rise)
    local places, _, pixels = load_of(queue, jobs, left)
    local oldest = redis.call('ZRANGE', waiting_key(queue), 0, 0, 'WITHSCORES')[2]
    local newest = oldest and tonumber(oldest) + rise * (#STEPS - 1)
    local late = {}
    local longest = redis.call('ZREVRANGE', effort_key(queue), 0, math.min(places, FRONT) - 1, 'WITHSCORES')
    for place = 1, places > 0 and #longest or 0, 2 do
      local id, effort = longest[place], tonumber(longest[place + 1])
      local since = tonumber(redis.call('ZSCORE', waiting_key(queue), id))
      if effort * EARLY >= (pixels - effort) / places and since <= newest then late[#late + 1] = id end
    end
    put_first(queue, late)
  end

  -- where the jobs are known in size; once in a while for all workers together
  local function arrange(slower, rise, answer)
    local last = tonumber(redis.call('GET', 'transcoder:arranged') or 0)
    if last <= now and now - last < ARRANGED then return end
    redis.call('SET', 'transcoder:arranged', at(now))
    local jobs, left
    for _, queue in ipairs(redis.call('SMEMBERS', 'transcoder:queues')) do
      if not paused(queue) and redis.call('EXISTS', effort_key(queue)) == 1 then
        if not jobs then jobs, left = in_hand() end
        fill_software(queue, jobs, left, slower, answer)
        long_first(queue, jobs, left, rise)
      end
    end
  end

  -- Where no job waits each message is of one that ended or went elsewhere: workers take it off, or this, where none comes.
  local function clear(queue)
    if live(queue) > 0 or redis.call('ZCARD', waiting_key(queue)) > 0 then return end
    local lists = {}
    for place, step in ipairs(STEPS) do lists[place] = queue .. step end
    redis.call('DEL', unpack(lists))
  end

  -- Jobs that waited for hardware long enough go to software, where somebody serves that; what was laid aside is sent
  -- again. Every worker does this every now and then, a bounded number of jobs at a time. Without `slower`, which is how
  -- many times as long software takes, the order is that of arrival.
  function operations.tend(ask)
    redis.call('SET', 'transcoder:prefer_wait', ask.wait)
    for state in pairs(LEGAL) do if finished(state) then prune(state) end end
    local answer = {'ok'}
    for _, queue in ipairs(redis.call('SMEMBERS', 'transcoder:queues')) do
      local wait, why, word = patience(queue, ask.wait)
      local ids = paused(queue) and {} or waited_enough(queue, wait, word == 'unserved' or not ask.slower)
      for _, id in ipairs(ids) do
        if live(field(id, 'software')) == 0 then break end
        hop(id, queue, why)
        answer[#answer + 1] = {id, queue, word}
      end
      clear(queue)
    end
    if ask.slower then arrange(ask.slower, ask.rise, answer) end
    local risen = redis.call('ZRANGEBYSCORE', 'transcoder:rising', '-inf', now - ask.rise, 'LIMIT', 0, AT_ONCE)
    for _, id in ipairs(risen) do rise(id) end
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'transcoder:later', '-inf', now, 'LIMIT', 0, AT_ONCE)) do
      redis.call('ZREM', 'transcoder:later', id)
      redis.call('HDEL', job_key(id), 'again')
      local state, queue = unpack(redis.call('HMGET', job_key(id), 'state', 'queue'))
      if state == 'queued' then
        wait_in(id, queue)
        send(id, queue, true)
      end
    end
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'transcoder:aside', '-inf', now, 'LIMIT', 0, AT_ONCE)) do
      redis.call('ZREM', 'transcoder:aside', id)
      local state, queue = unpack(redis.call('HMGET', job_key(id), 'state', 'queue'))
      if state == 'queued' then send(id, queue, true) end
    end
    return answer
  end
end

-- A worker that was given up may still wake up and publish, until another has taken its files away: so what it held is
-- cancelled by the next worker, as what runs is by its own.
function operations.cancel(ask)
  local state, unfenced = unpack(redis.call('HMGET', job_key(ask.id), 'state', 'unfenced'))
  if state == 'running' or state == 'queued' and unfenced then
    if redis.call('HSETNX', job_key(ask.id), 'cancel', ask.error) == 1 then note(ask.id, now, 'cancel asked') end
    if state == 'queued' then send(ask.id, to_be_closed_in(ask.id), true) end
    return {'ok', state}
  end
  return cancel(ask.id, ask.error) or {'ok', 'cancelled'}
end

function operations.record(ask)
  local record = redis.call('HGETALL', job_key(ask.id))
  if #record == 0 then return {'unknown'} end
  local queue, software = unpack(redis.call('HMGET', job_key(ask.id), 'queue', 'software'))
  local since = redis.call('ZSCORE', prefer_key(queue), ask.id)
  local wait = tonumber(redis.call('GET', 'transcoder:prefer_wait') or '')
  local hop = since and wait and live(software) > 0 and at(math.max(0, tonumber(since) + patience(queue, wait) - now)) or ''
  local waiting = redis.call('ZCARD', waiting_key(queue))
  return {'ok', record, redis.call('LRANGE', history_key(ask.id), 0, -1), waiting, #live_workers(), live(queue), hop, paused(queue) and 1 or 0}
end

function operations.jobs(ask)
  local index = ask.state and state_key(ask.state) or 'transcoder:jobs'
  local answer = {'ok'}
  for _, id in ipairs(redis.call('ZREVRANGE', index, 0, ask.limit - 1)) do
    local record = redis.call('HGETALL', job_key(id))
    if #record > 0 then
      answer[#answer + 1] = id
      answer[#answer + 1] = record
    end
  end
  return answer
end

-- running jobs whose worker is not heard from; those that run are no more than all workers have places for
local function stuck(running)
  local count = 0
  for _, id in ipairs(running) do
    if now - tonumber(field(id, 'heartbeat') or 0) >= ALIVE then count = count + 1 end
  end
  return count
end

function operations.figures()
  local running = redis.call('ZRANGE', state_key('running'), 0, -1)
  local answer = {'ok', #running, stuck(running), #live_workers()}
  for _, queue in ipairs(redis.call('SMEMBERS', 'transcoder:queues')) do
    local oldest = redis.call('ZRANGE', waiting_key(queue), 0, 0, 'WITHSCORES')[2]
    answer[#answer + 1] = queue
    answer[#answer + 1] = redis.call('ZCARD', waiting_key(queue))
    answer[#answer + 1] = at(oldest and math.max(0, now - tonumber(oldest)) or 0)
    answer[#answer + 1] = live(queue)
  end
  return answer
end

return operations[ARGV[1]](cjson.decode(ARGV[2]))
