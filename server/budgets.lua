-- One step of one partition on one pool of a budget, atomically (see server/budgets.py).
--
-- KEYS[1]  the pool, a hash: pieces and cents, granted in all; by partition "<epoch> <pieces> <cents>", granted to it;
--          limit, "<version> <pieces> <cents>": the newest limit that anyone came with ("-" is none).
-- ARGV     step, partition, epoch, then what the step needs.
-- Returns  what is granted to the partition now, {pieces, cents}; or {} if another epoch has the partition.

local pool, step, partition, epoch = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local mine = redis.call('HGET', pool, partition) or '0 0 0'
local before, pieces, cents = string.match(mine, '^(%d+) (%d+) (%d+)$')
local granted = {pieces = tonumber(pieces), cents = tonumber(cents)}
-- A worker that lost the partition must not change what its successor believes.
if epoch < tonumber(before) then return {} end
local is_new = redis.call('EXISTS', pool) == 0

local function keep()
  redis.call('HSET', pool, partition, string.format('%.0f %.0f %.0f', epoch, granted.pieces, granted.cents))
  return {granted.pieces, granted.cents}
end

if step == 'give' then
  -- Expired by now: nobody asks for it any more.
  if is_new then return {0, 0} end
  for unit, used in pairs({pieces = tonumber(ARGV[4]), cents = tonumber(ARGV[5])}) do
    -- More than was granted can be used only if the store has lost the grant since; then that counts all the same.
    if used ~= granted[unit] then
      redis.call('HINCRBY', pool, unit, string.format('%.0f', used - granted[unit]))
      granted[unit] = used
    end
  end
  return keep()
end

if step == 'take' then
  local need = {pieces = tonumber(ARGV[4]), cents = tonumber(ARGV[5])}
  local version, limit = ARGV[6], {pieces = ARGV[7], cents = ARGV[8]}
  local sharers, expires_s = tonumber(ARGV[9]), tonumber(ARGV[10])
  local known = redis.call('HGET', pool, 'limit')
  local newest = known and tonumber(string.match(known, '^%d+')) or -1
  if newest > tonumber(version) then
    -- A worker that has not heard of the newest limit yet is held to it all the same.
    limit.pieces, limit.cents = string.match(known, '^%d+ (%S+) (%S+)$')
  elseif need.pieces + need.cents > 0 then
    redis.call('HSET', pool, 'limit', version .. ' ' .. limit.pieces .. ' ' .. limit.cents)
  end
  for unit, wanted in pairs(need) do
    if wanted > 0 then
      local room, out = 64 * wanted, tonumber(redis.call('HGET', pool, unit) or 0)
      if limit[unit] ~= '-' then room = math.max(0, tonumber(limit[unit]) - out) end
      -- More than is needed now, so that this need not be asked each time; but the less, the less there is left.
      local ahead = math.min(64 * wanted, math.floor(room / (2 * sharers)))
      local more = math.min(room, math.max(wanted, ahead))
      if more > 0 then
        redis.call('HINCRBY', pool, unit, string.format('%.0f', more))
        granted[unit] = granted[unit] + more
      end
    end
  end
  local kept = keep()
  if expires_s > 0 then
    redis.call('EXPIREAT', pool, expires_s)
  elseif need.pieces + need.cents > 0 then
    redis.call('PERSIST', pool)
  elseif is_new then
    -- Nothing but who owns the partition; to be known until those before it have given up.
    redis.call('EXPIRE', pool, 86400)
  end
  return kept
end

return redis.error_reply('unknown step')
