#!lua
-- The records of a prefix are the fields of one hash: s/ID, e/NAME, store, and epoch, which is "NUMBER RUN NONCE".
-- The flags of the first line refuse every operation on a replica, reads too.
local key, operation = KEYS[1], ARGV[1]

if operation == 'read' then
  return redis.call('HGET', key, ARGV[2])
end

if operation == 'list' then
  return redis.call('HSCAN', key, ARGV[2], 'MATCH', ARGV[3] .. '*', 'COUNT', 32)
end

if operation == 'rights' then
  local commands = {
    {'HGET', key, ''}, {'HSET', key, '', ''}, {'HDEL', key, ''}, {'HSCAN', key, 0}, {'INFO'}, {'TIME'},
    {'PUBLISH', key, ''}, {'SUBSCRIBE', key},
  }
  local denied = {}
  for _, command in ipairs(commands) do
    if not redis.acl_check_cmd(unpack(command)) then table.insert(denied, command[1]) end
  end
  return denied
end

local function version()
  local found = redis.call('HGET', key, ARGV[2])
  return found and redis.sha1hex(found) or ''
end

if operation == 'delete' then
  return version() == ARGV[3] and redis.call('HDEL', key, ARGV[2]) or 0
end

-- The process of the server: another one may have lost records.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local epoch = redis.call('HGET', key, 'epoch') or ''
local number, of_run = string.match(epoch, '^(%d+) (%x+)')
number = tonumber(number) or 0

if operation == 'epoch' then
  -- An epoch of another process, or one that the caller knows otherwise, is followed by a higher one.
  local known = tonumber(string.match(ARGV[2], '^%d+')) or -1
  if of_run == run and (epoch == ARGV[2] or number > known) then
    return epoch
  end
  -- Five-minute steps since 2026, in case that all records and all candidates are gone: tokens rise all the same.
  local since_2026 = math.floor((redis.call('TIME')[1] - 1767225600) / 300)
  number = math.max(number, known, math.min(since_2026, 4000000)) + 1
  epoch = number .. ' ' .. run .. ' ' .. ARGV[3]
  redis.call('HSET', key, 'epoch', epoch)
  return epoch
end

if epoch ~= ARGV[5] or of_run ~= run then
  return 'epoch'
end
if version() ~= ARGV[3] then
  return 'conflict'
end
redis.call('HSET', key, ARGV[2], ARGV[4])
if string.sub(ARGV[2], 1, 2) == 'e/' then
  -- A hint only: a user without the right to publish changes records all the same.
  redis.pcall('PUBLISH', key, ARGV[2])
end
return 'done'
