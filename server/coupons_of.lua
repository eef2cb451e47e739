-- All coupons of one customer at once.
--
-- KEYS[1]  the customer's index of coupons: codes by when their records go.
-- ARGV     what, then what it needs:
--            forget   the customer: no record of them stays.
--            left     the store that the customer left, when they did, and now_ms: what was reserved before, for as
--                     long as they are in it, is free again.
-- Returns  how many coupons it has changed.

local what, codes, changed = ARGV[1], redis.call('ZRANGE', KEYS[1], 0, -1), 0

local function leave_purchase(store, redemption, code)
  if store and redemption then
    redis.call('SREM', 'nearcast:purchase:{' .. store .. '\31' .. redemption .. '}', code)
  end
end

for _, code in ipairs(codes) do
  local key = 'nearcast:coupon:{' .. code .. '}'
  local c = redis.call(
    'HMGET', key, 'held_store', 'held_by', 'while_in_store', 'redeemed_store', 'redemption', 'store', 'blocks',
    'held_until_ms', 'held_ms'
  )
  if what == 'forget' then
    leave_purchase(c[1], c[2], code)
    leave_purchase(c[4], c[5], code)
    if c[6] then redis.call('ZREM', 'nearcast:store-coupons:{' .. c[6] .. '}', code) end
    for block in string.gmatch(c[7] or '', '[^\31]+') do
      redis.call('SREM', 'nearcast:block:{' .. block .. '}:codes', code)
    end
    changed = changed + redis.call('UNLINK', key)
  elseif c[2] and c[1] == ARGV[2] and c[3] == '1' and tonumber(c[9] or 0) <= tonumber(ARGV[3]) then
    leave_purchase(c[1], c[2], code)
    redis.call('HDEL', key, 'held_by', 'held_store', 'held_until_ms', 'held_ms', 'while_in_store')
    if tonumber(ARGV[4]) < tonumber(c[8]) then changed = changed + 1 end
  end
end

if what == 'forget' then
  redis.call('UNLINK', KEYS[1])
  for _, kind in ipairs({'applied-lately', 'redeemed-lately'}) do
    redis.call('UNLINK', 'nearcast:' .. kind .. ':{' .. ARGV[2] .. '}')
  end
end
return changed
