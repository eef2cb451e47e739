-- One step of one block of coupons, atomically (see server/blocks.py).
--
-- KEYS[1]  the block's hash: store, taken_ms, until_ms, free_ms (when what was not merged is free again), closed_ms.
-- KEYS[2]  the set of its codes.
-- KEYS[3]  of take: the store's index of coupons, codes by when they were applied.
-- ARGV     step, now_ms, then what the step needs.
-- Returns  {verdict, store, until_ms, free_ms, closed_ms, code, offer, code, offer, …}, or {verdict}.

local block, codes, step, now_ms = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
-- How many coupons that can't go into a block are looked at besides those that can.
local MORE = 1000

local function coupon_key(code) return 'nearcast:coupon:{' .. code .. '}' end

-- The blocks that a coupon was in, without those that are gone.
local function still_known(names)
  return (string.gsub(names, '([^\31]+)\31', function(name)
    if redis.call('EXISTS', 'nearcast:block:{' .. name .. '}') == 0 then return '' end
  end))
end

local known = redis.call('HGET', block, 'store')

if step == 'take' then
  local store, until_ms, free_ms, most, keep_ms, name = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[8]
  if known and known ~= store then return {'other_store'} end
  if redis.call('HEXISTS', block, 'closed_ms') == 1 then return {'block_closed'} end
  if not known then
    redis.call('HSET', block, 'store', store, 'taken_ms', ARGV[2], 'until_ms', until_ms, 'free_ms', free_ms)
    redis.call('PEXPIRE', block, keep_ms)
    local taken = 0
    for _, code in ipairs(redis.call('ZREVRANGE', KEYS[3], 0, most + MORE - 1)) do
      if taken == most then break end
      local c = redis.call('HMGET', coupon_key(code), 'state', 'expires_ms', 'held_until_ms', 'block_until_ms', 'blocks')
      if c[1] ~= 'applied' or now_ms >= tonumber(c[2]) then
        redis.call('ZREM', KEYS[3], code)
      elseif not (c[3] and now_ms < tonumber(c[3])) and not (c[4] and now_ms < tonumber(c[4])) then
        redis.call('HSET', coupon_key(code), 'block', name, 'block_until_ms', free_ms)
        redis.call('HSET', coupon_key(code), 'blocks', still_known(c[5] or '') .. name .. '\31')
        redis.call('SADD', codes, code)
        taken = taken + 1
      end
    end
    redis.call('PEXPIRE', codes, keep_ms)
  end
elseif not known then
  return {'unknown_block'}
elseif step == 'close' and redis.call('HSETNX', block, 'closed_ms', ARGV[2]) == 1 then
  for _, code in ipairs(redis.call('SMEMBERS', codes)) do
    if redis.call('HGET', coupon_key(code), 'block') == ARGV[3] then
      redis.call('HDEL', coupon_key(code), 'block', 'block_until_ms')
    end
  end
end

local answer = {'known', unpack(redis.call('HMGET', block, 'store', 'until_ms', 'free_ms', 'closed_ms'))}
if step == 'take' then
  for _, code in ipairs(redis.call('SMEMBERS', codes)) do
    local c = redis.call('HMGET', coupon_key(code), 'state', 'block', 'offer')
    -- Meanwhile some are redeemed, in another block, or their customer was erased.
    if c[1] == 'applied' and c[2] == ARGV[8] then
      table.insert(answer, code)
      table.insert(answer, c[3])
    end
  end
end
return answer
